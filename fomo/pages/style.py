"""How the pages look, and the one script in them: it makes tables sortable."""

# Contrast on white: text 15:1, notes and captions 7:1, links and accents at least 4.5:1 (WCAG AA).
STYLE = """
:root { --text: #1b1f24; --soft: #4d5761; --line: #d5dae0; --back: #f5f7f9; --accent: #005b8f; --warn: #8a3b00 }
* { box-sizing: border-box }
body {
  margin: 0; background: #fff; color: var(--text);
  font: 16px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,"Helvetica Neue",Arial,sans-serif;
  overflow-wrap: break-word;
}
main { max-width: 1160px; margin: 0 auto; padding: 28px 24px 64px }
h1 { font-size: 28px; line-height: 1.2; margin: 0 0 4px; overflow-wrap: anywhere }
h2 { font-size: 21px; line-height: 1.3; margin: 48px 0 12px; padding-top: 12px; border-top: 1px solid var(--line) }
h3 { font-size: 18px; margin: 32px 0 8px }
p { margin: 8px 0; max-width: 75ch }
.sub,.note,figcaption,dt { color: var(--soft) }
.sub { margin: 0; max-width: none }
.note,figcaption,dt { font-size: 14px }
.hero {
  display: flex; flex-wrap: wrap; gap: 8px 40px; align-items: center; margin: 24px 0 16px; padding: 20px 24px;
  background: var(--back); border-radius: 10px;
}
.hero .value {
  font-size: 48px; line-height: 1.1; font-weight: 650; letter-spacing: -.02em; font-variant-numeric: tabular-nums;
}
.hero .label { font-size: 15px; color: var(--soft) }
.hero .say { flex: 1 1 320px }
.hero .say p { margin: 4px 0 }
.alert {
  border-left: 4px solid #d55e00; background: #fdf3ec; padding: 10px 16px; border-radius: 0 8px 8px 0;
  margin: 16px 0; max-width: none;
}
.alert ul { margin: 4px 0; padding-left: 20px }
nav { font-size: 15px; margin: 12px 0 }
nav a { margin-right: 16px; white-space: nowrap }
a { color: var(--accent) }
dl { display: grid; grid-template-columns: repeat(auto-fill,minmax(250px,1fr)); gap: 12px 24px; margin: 12px 0 }
dl div { min-width: 0 }
dd { margin: 0; overflow-wrap: anywhere }
.grid {
  display: grid; grid-template-columns: repeat(auto-fill,minmax(min(100%,330px),1fr)); gap: 24px; align-items: start;
  margin: 12px 0;
}
.wide { grid-template-columns: repeat(auto-fill,minmax(min(100%,480px),1fr)) }
.planes { display: grid; grid-template-columns: repeat(3,1fr); gap: 8px; margin: 8px 0 20px }
figure { margin: 0; min-width: 0 }
figure svg,figure img { display: block; width: 100%; height: auto }
figure img { border-radius: 4px }
figure svg text { font-family: system-ui,-apple-system,"Segoe UI",Roboto,"Helvetica Neue",Arial,sans-serif!important }
figure.small { max-width: 220px }
figcaption { margin-top: 4px }
figure .scroll { margin: 0 }
figcaption b { color: var(--text) }
.legend { display: flex; flex-wrap: wrap; gap: 2px 20px; font-size: 14px; list-style: none; margin: 8px 0; padding: 0 }
.legend i { display: inline-block; width: 22px; border-top: 3px solid; margin-right: 6px; vertical-align: middle }
.dark { background: #000; color: #fff; display: inline-flex; padding: 4px 12px; border-radius: 4px }
.browser { display: flex; flex-wrap: wrap; gap: 4px 14px; align-items: flex-start; margin: 12px 0 }
.browser details { margin: 0; font-size: 14px; max-width: 100% }
.browser details[open] { flex: 1 0 100%; padding: 8px 12px; background: var(--back); border-radius: 8px }
.views { display: flex; gap: 12px }
.view { flex: 1 1 0 }
.view input { width: 100%; margin: 4px 0 0 }
.frame { position: relative; overflow: hidden; background: #000; border-radius: 4px; color: #fff; font-size: 12px }
.frame img,.frame i { position: absolute; top: 0; height: 100%; width: calc(100%*var(--n)); left: calc(-100%*var(--i)) }
figure .frame img { width: calc(100%*var(--n)); height: 100%; max-width: none; border-radius: 0 }
.frame i { background-size: 100% calc(100%/var(--c)); background-repeat: repeat-y }
.frame b,.frame s {
  position: absolute; padding: 1px 4px; font-weight: 500; text-decoration: none; text-shadow: 0 0 3px #000;
}
.frame s { bottom: 2px; font-weight: 650 }
.frame .left { left: 0 }
.frame .right { right: 0 }
.scroll { overflow: auto; margin: 8px 0 16px; scrollbar-width: auto; scrollbar-color: #8a939c #e6e9ed }
.scroll::-webkit-scrollbar { width: 10px; height: 10px; background: #e6e9ed; border-radius: 5px }
.scroll::-webkit-scrollbar-thumb { background: #8a939c; border-radius: 5px }
.more { display: none; font-size: 13px; color: var(--accent); margin: 4px 0 0 }
.more.on { display: block }
.more.on + .scroll { margin-top: 4px }
.scroll.across { border-right: 2px solid var(--accent) }
.scroll.down { border-bottom: 2px solid var(--accent) }
.tall { max-height: 720px }
:focus-visible { outline: 3px solid #56b4e9; outline-offset: 1px }
table { border-collapse: separate; border-spacing: 0; font-size: 14px; font-variant-numeric: tabular-nums }
th,td {
  padding: 5px 12px 5px 6px; border-bottom: 1px solid var(--line); text-align: left; vertical-align: top;
  white-space: nowrap; background: #fff;
}
th.number,td.number { text-align: right }
thead th {
  position: sticky; top: 0; z-index: 2; background: var(--back); font-weight: 600; white-space: normal;
  vertical-align: bottom; line-height: 1.3;
}
tbody th { font-weight: 500; position: sticky; left: 0; z-index: 1 }
thead th:first-child { left: 0; z-index: 3 }
tbody tr.main th,tbody tr.main td { font-weight: 650; background: var(--back) }
button.reload { font: inherit; padding: 4px 14px; cursor: pointer }
thead button { all: unset; cursor: pointer }
thead button::after { content: "\\00a0\\2195"; color: var(--soft) }
th[aria-sort=ascending] button::after { content: "\\00a0\\2191"; color: var(--text) }
th[aria-sort=descending] button::after { content: "\\00a0\\2193"; color: var(--text) }
.warn,td span.wrap { display: inline-block; white-space: normal }
.warn { width: max-content; max-width: 11em; color: var(--warn); font-weight: 550 }
.confusion { width: 100%; margin: 8px 0 }
.confusion th { position: static }
.confusion tbody th { vertical-align: middle; min-width: 0 }
.confusion td { font-size: 26px; line-height: 1.3; text-align: center; padding: 28px 12px; width: 38% }
.confusion.many { width: auto }
.confusion.many td { font-size: 17px; padding: 10px; width: auto; min-width: 84px }
td span.wrap { min-width: 12em; max-width: 32em }
.confusion small { display: block; font-size: 13px; color: var(--soft) }
details { margin: 12px 0 }
summary { cursor: pointer; color: var(--accent) }
pre { font-size: 13px; line-height: 1.45; overflow-x: auto; background: var(--back); padding: 12px; border-radius: 6px }
footer { margin-top: 48px; font-size: 14px; color: var(--soft) }
@media(max-width:600px) {
  main { padding: 20px 16px 48px }
  .hero { padding: 16px }
  .hero .value { font-size: 40px }
  h1 { font-size: 24px }
  h2 { margin-top: 36px }
  .planes { grid-template-columns: repeat(2,1fr) }
  .planes figure:first-child { grid-column: 1/-1 }
  thead th.number { min-width: 6.2em }
  th,td { padding: 5px 10px 5px 6px }
  tbody th { white-space: normal; min-width: 7.5em }
  .warn { max-width: 9em }
  nav a { display: inline-block; padding: 4px 0 }
}
@page { margin: 14mm }
@media print {
  body { font-size: 10pt; print-color-adjust: exact; -webkit-print-color-adjust: exact }
  main { max-width: none; padding: 0 }
  nav,.browse,.more,button.reload,thead button::after { display: none!important }
  .scroll { overflow: visible; border: 0!important }
  .tall { max-height: none }
  thead { display: table-header-group }
  thead th,tbody th { position: static }
  table { font-size: 7.5pt }
  th,td { padding: 2px 5px 2px 2px; white-space: normal }
  h1,h2,h3,.note { break-after: avoid }
  figure,tr,.hero,.alert,dl div { break-inside: avoid }
  .grid { grid-template-columns: repeat(3,1fr); gap: 12px }
  a { color: inherit; text-decoration: none }
}
"""

# Of a sorted table undefined values go last in either direction. A slider shows another slice. A table that is wider
# than the page, or longer than its region, says so.
SCRIPT = """
document.addEventListener('input', event => {
  const frame = event.target.parentElement.querySelector('.frame');
  if (frame) frame.style.setProperty('--i', event.target.value);
});
document.addEventListener('click', event => {
  if (event.target.closest('button.reload')) location.reload();
  const link = event.target.closest('a[href^="#case-"]');
  if (link) document.getElementById(link.hash.slice(1)).closest('details').open = true;
});
const wide = () => document.querySelectorAll('.more').forEach(hint => {
  const region = hint.nextElementSibling, said = [];
  const across = region.scrollWidth > region.clientWidth + 1, down = region.scrollHeight > region.clientHeight + 1;
  if (across) said.push('\u2194 more columns: scroll sideways');
  if (down) said.push('\u2195 more rows: scroll down');
  hint.textContent = said.join(' \u00b7 ');
  hint.classList.toggle('on', across || down);
  region.classList.toggle('across', across);
  region.classList.toggle('down', down);
});
addEventListener('resize', wide);
document.addEventListener('toggle', wide, true);
wide();
for (const table of document.querySelectorAll('table.sortable')) {
  const heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, column) => {
    const button = document.createElement('button');
    button.title = 'sort by ' + head.textContent;
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener('click', () => {
      const up = head.getAttribute('aria-sort') !== 'ascending';
      for (const other of heads) other.removeAttribute('aria-sort');
      head.setAttribute('aria-sort', up ? 'ascending' : 'descending');
      const key = row => {
        const cell = row.cells[column], value = cell.dataset.value;
        return value === undefined ? cell.textContent : value === 'inf' ? Infinity : Number(value);
      };
      const missing = x => x === '' || Number.isNaN(x);
      const rows = [...table.tBodies[0].rows].map(row => [key(row), row]);
      rows.sort(([a], [b]) => {
        if (missing(a) || missing(b)) return missing(a) - missing(b);
        const order = typeof a === 'number' && typeof b === 'number' ? a - b || 0
          : String(a).localeCompare(String(b), 'en', {numeric: true});
        return up ? order : -order;
      });
      table.tBodies[0].append(...rows.map(([, row]) => row));
    });
  });
}
"""
