"""The style of the page: light and dark, narrow and wide, no outside fonts."""

STYLE = """
:root {
  color-scheme: light dark;
  --paper: #ffffff; --panel: #f5f6f8; --ink: #1b1f24; --muted: #5a636e;
  --rule: #dfe3e8; --accent: #1d5c9e; --heat: 29 92 158; --warn: #8a5300;
  --s0: #1f6fb4; --s1: #d1551a; --s2: #1a8a5a; --s3: #a3459a;
  --s4: #8a6d00; --s5: #0f8b99; --s6: #b3334a; --s7: #5d5fb8;
}
@media (prefers-color-scheme: dark) {
  :root {
    --paper: #14171b; --panel: #1d2127; --ink: #e4e7eb; --muted: #9aa5b1;
    --rule: #323943; --accent: #7ab5ee; --heat: 66 134 204; --warn: #e0b060;
    --s0: #63aeee; --s1: #f08a55; --s2: #4fc48c; --s3: #d88ad0;
    --s4: #d3b340; --s5: #4fc4d2; --s6: #f07d90; --s7: #a3a5f0;
  }
}
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; }
body {
  margin: 0 auto; padding: 2.5rem 1.5rem 4rem; max-width: 80rem;
  background: var(--paper); color: var(--ink);
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans",
    "Liberation Sans", sans-serif;
  font-variant-numeric: tabular-nums;
}
h1, h2, h3 {
  font-family: Charter, "Bitstream Charter", "Iowan Old Style", Cambria,
    "Noto Serif", "Liberation Serif", Georgia, serif;
  line-height: 1.2; overflow-wrap: anywhere;
}
h1 { font-size: 2.1rem; margin: 0 0 .75rem; }
h2 {
  font-size: 1.45rem; margin: 2.8rem 0 .8rem; padding-top: .7rem;
  border-top: 1px solid var(--rule);
}
h3 { font-size: 1.15rem; margin: 2.2rem 0 .2rem; }
h4 { font-size: .95rem; margin: 1.4rem 0 .4rem; }
p, ul.note, ol.note, dl { max-width: 52rem; margin: .5rem 0; }
p, li, dd { overflow-wrap: anywhere; }
.lead { font-size: 1.1rem; }
.note, .missing { color: var(--muted); font-size: .87rem; }
.note { padding-left: 0; }
ul.note, ol.note { padding-left: 1.3rem; }
.missing { border-left: 3px solid var(--warn); padding-left: .7rem; }
nav ul { display: flex; flex-wrap: wrap; gap: .2rem 1.2rem; padding: 0;
  margin: 1.2rem 0 0; list-style: none; font-size: .92rem; }
a { color: var(--accent); text-underline-offset: .15em; }
:focus-visible { outline: 2px solid var(--accent); outline-offset: 2px; }
summary { cursor: pointer; color: var(--accent); margin: .35rem 0; }
pre {
  background: var(--panel); padding: .8rem 1rem; border-radius: 6px;
  overflow: auto; max-height: 30rem; font-size: .8rem; line-height: 1.45;
}
code { font-size: .85em; overflow-wrap: anywhere; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .15rem 1rem;
  font-size: .87rem; }
dt { color: var(--muted); } dd { margin: 0; }
.scroll { overflow-x: auto; margin: .8rem 0; }
table { border-collapse: collapse; font-size: .9rem; }
th, td { padding: .38rem .7rem; text-align: right; vertical-align: top;
  border-bottom: 1px solid var(--rule); }
th { font-weight: 600; }
th[scope=row], thead th:first-child, .text { text-align: left; }
thead th { color: var(--muted); font-size: .82rem; vertical-align: bottom; }
tbody th[scope=row] { font-weight: 500; }
sup { font-size: .7em; line-height: 0; margin-left: .1em; }
.stages { min-width: 100%; }
.stages thead th { border-bottom: 2px solid var(--ink); }
.stages tbody th { min-width: 9.5rem; }
.stages tbody th b { display: block; font-weight: 650; }
.stages small { color: var(--muted); font-weight: 400; }
.stages strong { font-weight: 750; }
.stages td { white-space: nowrap; }
.baseline { font-style: italic; background: var(--panel); }
.legend { display: flex; flex-wrap: wrap; gap: .25rem 1.1rem; padding: 0;
  margin: .7rem 0; list-style: none; font-size: .88rem; max-width: none; }
.legend li { display: flex; align-items: center; gap: .4rem; }
.sample { width: 30px; height: 10px; overflow: visible; }
.charts { display: grid; gap: 1.2rem 1.6rem;
  grid-template-columns: repeat(auto-fill, minmax(min(100%, 310px), 1fr)); }
figure { margin: 0; min-width: 0; }
.chart figcaption { font-size: .88rem; font-weight: 600; }
.chart svg { width: 100%; height: auto; display: block; overflow: visible; }
svg text { fill: var(--muted); font-size: 11px; }
.grid { stroke: var(--rule); stroke-width: 1; fill: none; }
.axis { stroke: var(--muted); stroke-width: 1; fill: none; }
.line { stroke: var(--c); stroke-width: 1.8; fill: none;
  stroke-linejoin: round; stroke-linecap: round; }
.dot { fill: var(--c); }
.dot.hidden { fill-opacity: 0; r: 4px; }
.dot:hover { fill-opacity: 1; r: 4px; }
.s0 { --c: var(--s0); } .s1 { --c: var(--s1); stroke-dasharray: 7 3; }
.s2 { --c: var(--s2); stroke-dasharray: 2 3; }
.s3 { --c: var(--s3); stroke-dasharray: 8 3 2 3; }
.s4 { --c: var(--s4); stroke-dasharray: 12 4; }
.s5 { --c: var(--s5); stroke-dasharray: 4 2; }
.s6 { --c: var(--s6); stroke-dasharray: 1 4; }
.s7 { --c: var(--s7); stroke-dasharray: 10 3 2 3 2 3; }
.bars { columns: 2 24rem; column-gap: 2.5rem; }
.group { display: grid; grid-template-columns: 7.5rem 1fr; gap: .7rem;
  align-items: center; break-inside: avoid; padding: .35rem 0; }
.group .name { font-size: .88rem; text-align: right; overflow-wrap: anywhere;
  line-height: 1.2; }
.group.mean .name { font-weight: 700; }
.tracks { border-left: 1px solid var(--muted); padding-right: 2.6rem; }
.track { display: flex; align-items: center; gap: .35rem; height: 15px; }
.bar { display: block; height: 11px; background: var(--c); flex: none;
  border-radius: 0 2px 2px 0; }
.value { font-size: .72rem; color: var(--muted); margin-right: -2.6rem; }
.matrix { font-size: .78rem; border-spacing: 0; }
.matrix th, .matrix td { border: 1px solid var(--paper); padding: .28rem .3rem;
  text-align: center; min-width: 2.35rem; vertical-align: middle; }
.matrix th { border: 0; font-weight: 500; color: var(--ink); }
.matrix th[scope=row] { text-align: right; padding-right: .6rem;
  position: sticky; left: 0; background: var(--paper); white-space: nowrap; }
.matrix .turned { vertical-align: bottom; }
.matrix .turned span { writing-mode: vertical-rl; transform: rotate(180deg);
  max-height: 9rem; }
.matrix .points { text-align: right; color: var(--muted); padding-left: 1rem;
  vertical-align: bottom; border: 0; }
.heat { background: rgb(var(--heat) / calc(.03 + .97 * var(--v))); }
.heat.high { color: #fff; }
.heat.diagonal { outline: 1.5px solid var(--ink); outline-offset: -2px; }
.meters td { min-width: 4.4rem; }
.meters th, .meters td { padding: .3rem .45rem; }
.meters th[scope=row] { position: sticky; left: 0; background: var(--paper);
  min-width: 6rem; }
.meters thead tr:last-child th { text-align: right; }
.meters thead th[rowspan] { text-align: left; vertical-align: bottom; }
.meters td i { display: block; height: 5px; margin-top: 2px; border-radius: 2px;
  background: linear-gradient(var(--s0), var(--s0)) 0 / var(--w) 100% no-repeat
    var(--rule); }
.meters td:nth-child(odd) i { background-image:
  linear-gradient(var(--s2), var(--s2)); }
.meters thead tr:first-child th { border-bottom: 0; padding-bottom: 0; }
.meters thead th[colspan] { text-align: left; color: var(--ink);
  font-size: .9rem; padding-left: 1.3rem; }
.meters td:nth-child(even), .meters tr:last-child th[scope=col]:nth-child(odd)
  { padding-left: 1.3rem; }
.meters tfoot td, .meters tfoot th { font-weight: 650; border-bottom: 0; }
.meters tfoot td[colspan] { text-align: left; padding-left: 1.3rem; }
.meters tfoot tr:first-child > * { border-top: 1px solid var(--muted); }
.pictures { display: grid; gap: .8rem; margin: .7rem 0;
  grid-template-columns: repeat(auto-fit, minmax(150px, 1fr)); }
.pictures figure { max-width: 420px; }
.pictures img, .view img { width: 100%; height: auto; display: block;
  background: var(--panel); border-radius: 6px; }
.pictures img { padding: 4px; }
figcaption { font-size: .86rem; padding-top: .25rem; line-height: 1.35; }
figcaption small { display: block; color: var(--muted); }
.views { margin: 0; }
.view { display: grid; grid-auto-flow: column; gap: .6rem;
  grid-auto-columns: minmax(130px, 220px); margin-bottom: .8rem; }
.classes i { width: 13px; height: 13px; border-radius: 3px; flex: none; }
.classes .none { background: rgb(128 128 128); }
@media (max-width: 40rem) {
  body { padding: 1.4rem 1rem 3rem; font-size: 15px; }
  h1 { font-size: 1.6rem; } h2 { font-size: 1.25rem; margin-top: 2.4rem; }
  .group { grid-template-columns: 5.2rem 1fr; gap: .5rem; }
  th, td { padding: .32rem .5rem; }
  dl { grid-template-columns: 1fr; gap: 0; } dd { margin-bottom: .4rem; }
}
@media print { body { max-width: none; } .scroll { overflow: visible; } }
""".strip()
