"""Pack binary MNIST into the file that ships in the package: python tools/pack_mnist.py IDX_FOLDER.

Sec. 4.1 trains on 28x28 *binary* images and does not give the threshold. Here a pixel is 1 if its gray value is above
127, half of 255. One bit per pixel and one byte per label compress to 2 MB.

The folder holds the four canonical IDX files, gzipped. The checksums below identify them. The result is checked too,
so a changed threshold is an error.
"""

import hashlib
import sys
from pathlib import Path

import numpy as np

from batchnorm.paper.mnist.data import IDX_NAMES, PACKED, load_mnist

SOURCE_SHA256 = {
    "train-images-idx3-ubyte.gz": "0b367032e93c5d0cea0925647cfdb18614af8ee15f83e6f2fc2ad904a6835971",
    "train-labels-idx1-ubyte.gz": "1787548bbe0bff1ec2ecdc0ef292b02df999e2d1a6002d27500982c652b17203",
    "t10k-images-idx3-ubyte.gz": "1a1a05eab793c14bb050b398624a11b0ffd1a2953baed553b1b9bd079e2a20be",
    "t10k-labels-idx1-ubyte.gz": "b91679a0acfe4ba0e50a2437a903084cba1f5f92592b016a25a7dfd00455798b",
}
# Of the bytes of the arrays. The .npz file itself depends on the version of zlib.
RESULT_SHA256 = {
    "train_images": "1b7a75c885f164abbded76f434f8a56601898630fff731a58d5ec099859046f4",
    "train_labels": "1feba77c54802fa5339a11837ea4b2866434b83314ec45192930f1df69120c13",
    "test_images": "0f241057dcdfd3ff181fb1389503d987475dc4539301868124d25a54cabf6531",
    "test_labels": "ddeff807876a9661a1110d45c266c86239a3a1b7d37da0c3716a7a683c852ff5",
}
# Counted in the IDX files, independently of the result.
PIXELS_ON = {"train_images": 6_221_431, "test_images": 1_052_359}
LABELS = {
    "train_labels": [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949],
    "test_labels": [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009],
}


def main() -> None:
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    folder = Path(sys.argv[1])
    for name, wanted in SOURCE_SHA256.items():
        if sha256((folder / name).read_bytes()) != wanted:
            sys.exit(f"{folder / name} is not the canonical file: its SHA-256 is not {wanted}")
        if (folder / name.removesuffix(".gz")).exists():
            sys.exit(f"{folder} has {name} unpacked too, which would be read instead; use a folder without it")
    data = load_mnist(folder)
    packed = {}
    for name in IDX_NAMES:
        array = getattr(data, name).numpy().astype(np.uint8)
        packed[name] = np.packbits(array, axis=1) if name.endswith("images") else array
        print(name, sha256(packed[name].tobytes()))
    if {name: sha256(array.tobytes()) for name, array in packed.items()} != RESULT_SHA256:
        sys.exit(f"the result differs from RESULT_SHA256; {PACKED} was not written")
    np.savez_compressed(PACKED, **packed)


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


if __name__ == "__main__":
    main()
