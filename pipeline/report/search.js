"use strict";
// Shows the rows of which the question or an answer holds every word of the search field. The same for every report: no
// text of the data is in it, and what rows say is compared and never made into elements, addresses or code.
(() => {
  const field = document.getElementById("search");
  const found = document.getElementById("found");
  const plain = (text) => text.normalize("NFKC").toLowerCase();
  const rows = [...document.querySelectorAll(".said > article")].map((row) => {
    const texts = [...row.querySelectorAll("p, dd")].map((one) => (one.firstChild ? one.firstChild.textContent : ""));
    return { row, text: plain(texts.join("\n")) };
  });
  const search = () => {
    const words = plain(field.value).split(/\s+/).filter(Boolean);
    for (const { row, text } of rows) row.hidden = !words.every((word) => text.includes(word));
    const shown = rows.filter(({ row }) => row.getClientRects().length).length;
    found.textContent = `${shown} of ${rows.length} rows`;
  };
  field.addEventListener("input", search);
  document.addEventListener("change", search); // the buttons, which styles react to
  document.getElementById("searching").hidden = false;
  search();
})();
