// The page is whole without this: it filters the table, and opens code that a link leads to.
(() => {
  const form = document.getElementById("filter");
  const rows = [...document.querySelectorAll("table.claims tbody tr")];
  const names = ["paper", "verdict", "kind"];
  const show = () => {
    let count = 0;
    for (const row of rows) {
      const hidden = names.some((name) => {
        const chosen = form.elements[name].value;
        return chosen && row.dataset[name] !== chosen;
      });
      row.hidden = hidden;
      count += !hidden;
    }
    form.querySelector("output").textContent = `${count} of ${rows.length} claims`;
  };
  form.hidden = false;
  form.addEventListener("change", show);
  form.addEventListener("submit", (event) => event.preventDefault());
  show();

  // ids are of ASCII alone: what is not decoded names none
  const open = (hash) => {
    const target = document.getElementById(hash.slice(1));
    if (target instanceof HTMLDetailsElement) {
      target.open = true;
      target.scrollIntoView();
    }
  };
  window.addEventListener("hashchange", () => open(location.hash));
  // a second click leads where the address is already
  document.addEventListener("click", (event) => {
    const link = event.target.closest('a[href^="#"]');
    if (link) open(link.hash);
  });
  open(location.hash);
})();
