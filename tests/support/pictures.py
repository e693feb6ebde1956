"""Generated images whose pixels tell where they are."""

import torch


def picture(height, width, channels=3):
    """Return an image (channels, height, width): red grows to the right, green downwards, blue is 128."""
    y, x = torch.meshgrid(torch.linspace(0, 255, height), torch.linspace(0, 255, width), indexing="ij")
    return torch.stack([x, y, torch.full_like(x, 128)])[:channels].to(torch.uint8)
