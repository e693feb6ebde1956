// Show the values of the curves at the step under the pointer, and hide curves by the buttons of the legend.
for (const chart of document.querySelectorAll(".chart")) {
  const cursor = chart.querySelector(".cursor"), last = Number(chart.dataset.last);
  const buttons = chart.querySelectorAll(".legend button");
  const curves = [...chart.querySelectorAll(".curve")].map((group, index) => {
    const values = group.dataset.values.split("|"), button = buttons[index];
    const steps = group.dataset.steps.split(" ").filter(Boolean).map(Number);
    const name = button.querySelector(".name").textContent, cell = button.querySelector(".value");
    return { group, button, cell, name, at: new Map(steps.map((step, place) => [step, values[place]])) };
  });
  const visible = () => curves.filter((curve) => !curve.group.hasAttribute("hidden"));
  const steps = () => [...new Set(visible().flatMap((curve) => [...curve.at.keys()]))].sort((a, b) => a - b);
  let current = last;

  function show(step) {
    current = step;
    const title = `at step ${step.toLocaleString("en-US")}`;
    chart.querySelector("output").textContent = title;
    for (const { at, cell } of curves) cell.textContent = at.get(step) ?? "";
    cursor.firstElementChild.style.left = `${(100 * step) / last}%`;
    const read = visible().filter(({ at }) => at.has(step)).map(({ at, name }) => `${name} ${at.get(step)}`);
    cursor.setAttribute("aria-valuenow", step);
    cursor.setAttribute("aria-valuetext", [title, ...read].join(", "));
  }

  function point(event) {
    const box = cursor.getBoundingClientRect(), wanted = ((event.clientX - box.left) / box.width) * last;
    const distance = (step) => Math.abs(step - wanted);
    const choice = steps();
    if (choice.length) show(choice.reduce((best, step) => (distance(step) < distance(best) ? step : best)));
  }

  function press(event) {
    const choice = steps(), place = choice.findIndex((step) => step >= current);
    const next = { ArrowLeft: place - 1, ArrowRight: place + 1, Home: 0, End: choice.length - 1 }[event.key];
    if (next === undefined) return;
    event.preventDefault();
    if (next in choice) show(choice[next]);
  }

  const end = () => show(steps().at(-1) ?? last);
  const slider = { role: "slider", tabindex: 0, "aria-valuemin": 0, "aria-valuemax": last };
  for (const [name, value] of Object.entries(slider)) cursor.setAttribute(name, value);
  cursor.addEventListener("pointermove", point);
  cursor.addEventListener("pointerdown", point);
  cursor.addEventListener("pointerleave", (event) => event.pointerType === "mouse" && end());
  cursor.addEventListener("keydown", press);
  for (const { group, button } of curves) {
    button.addEventListener("click", () => {
      button.setAttribute("aria-pressed", String(!group.toggleAttribute("hidden")));
      show(current);
    });
  }
  end();
}
