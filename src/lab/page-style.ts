// What the report pages begin with, and their style sheet: colours that the colour-blind can tell apart, light and dark.

import { escapeHtml } from './format.ts'

/** The beginning of a self-contained page, up to its body; `scripts` is what the content security policy says of them. */
export function pageHead(title: string, style: string, scripts = ''): string {
  return `<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'; ${scripts}img-src data:">
<link rel="icon" href="data:,">
<title>${escapeHtml(title)}</title>
<style>${style}</style>
</head>`
}

export const PAGE_STYLE = `
:root {
  --paper: #fbfbfa; --card: #ffffff; --ink: #1c2024; --dim: #5c6670; --line: #dfe3e6; --head: #f3f5f6;
  --blue: #0063a8; --orange: #b84a00; --good: #00694b; --good-back: #e0f4ec; --bad: #a8201a; --bad-back: #fbe6e4;
  --band: rgba(168, 32, 26, .14); --event: #5c6670;
}
@media (prefers-color-scheme: dark) {
  :root {
    --paper: #14171a; --card: #1b1f23; --ink: #e4e7ea; --dim: #98a2ac; --line: #31373d; --head: #23282d;
    --blue: #62b5f0; --orange: #f2a154; --good: #62d3a6; --good-back: #15352a; --bad: #ff9a90; --bad-back: #43201d;
    --band: rgba(255, 120, 110, .22); --event: #98a2ac;
  }
}
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 2.5rem 1.5rem 4rem; max-width: 72rem; background: var(--paper); color: var(--ink);
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", "DejaVu Sans", sans-serif; }
h1 { margin: 0; font-size: 1.75rem; letter-spacing: -.01em; }
h2 { margin: 0 0 .25rem; font-size: 1.2rem; }
header { margin-bottom: 1.5rem; }
.verdict { display: inline-block; margin: .6rem 0; padding: .25rem .75rem; border-radius: 1rem; font-weight: 600; }
.meta { margin: 0; color: var(--dim); font-size: .87rem; }
.meta span + span::before { content: " · "; }
.lead, .key { margin: 0 0 .75rem; color: var(--dim); max-width: 60rem; }
section { margin: 1.25rem 0; padding: 1.25rem 1.4rem; background: var(--card); border: 1px solid var(--line); border-radius: .6rem; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(12rem, 1fr)); gap: 1rem; margin: 0; padding: 0; list-style: none; }
.tiles li { padding: .9rem 1.1rem; background: var(--card); border: 1px solid var(--line); border-radius: .6rem; }
.tiles b { font-size: 1.8rem; font-weight: 650; letter-spacing: -.02em; font-variant-numeric: tabular-nums; }
.tiles i { font-style: normal; color: var(--dim); }
.tiles span { display: block; color: var(--dim); font-size: .87rem; }
.scroll { overflow-x: auto; }
table { width: 100%; min-width: 40rem; margin: .5rem 0 .75rem; border-collapse: collapse; font-size: .9rem; }
caption { padding: .4rem 0; text-align: left; font-weight: 600; }
#steps caption, #captures caption { position: absolute; width: 1px; height: 1px; overflow: hidden; clip-path: inset(50%); }
th { background: var(--head); color: var(--dim); font-weight: 600; text-align: left; white-space: nowrap; }
th, td { padding: .4rem .65rem; border-bottom: 1px solid var(--line); vertical-align: top; }
td { overflow-wrap: break-word; }
.n { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
td.none { color: var(--dim); }
code { font-family: ui-monospace, "SF Mono", Menlo, Consolas, "DejaVu Sans Mono", monospace; font-size: .92em; white-space: nowrap; }
a { color: var(--blue); }
.badge { display: inline-block; padding: .05rem .55rem; border-radius: 1rem; font-size: .82rem; font-weight: 600; white-space: nowrap; }
.ok { background: var(--good-back); color: var(--good); }
.bad { background: var(--bad-back); color: var(--bad); }
.badge.none { background: var(--head); color: var(--dim); }
.key span { display: inline-block; margin: 0 .4rem 0 1.1rem; vertical-align: middle; }
.key span:first-child { margin-left: 0; }
.dot { width: .5rem; height: .5rem; border-radius: 50%; background: var(--blue); }
.band { width: 1.4rem; height: .9rem; background: var(--band); border-left: 2px solid var(--bad); border-right: 2px solid var(--bad); }
.event { width: 0; height: 1rem; border-left: 2px dashed var(--event); }
.plot { width: 100%; min-height: 17rem; }
.uplot { font-family: inherit; }
.u-legend { min-width: 0; }
.u-legend { text-align: left; margin: .25rem 0 0; }
.u-legend th { background: none; color: inherit; }
.u-legend th, .u-legend td { border: 0; }
.topology { display: block; width: 100%; height: auto; font: 13px system-ui, "Segoe UI", Roboto, "Noto Sans", "DejaVu Sans", sans-serif; }
.topology text { fill: var(--ink); }
.topology .dim { fill: var(--dim); font-size: 11.5px; }
.topology .title { font-weight: 650; }
.topology .place { fill: var(--head); stroke: var(--line); }
.topology .part { fill: var(--card); stroke: var(--line); }
.topology .core { fill: var(--card); stroke: var(--blue); stroke-width: 1.5; }
.topology .wire { stroke: var(--dim); stroke-dasharray: 3 4; fill: none; }
.topology .toward { stroke: var(--blue); stroke-width: 2; fill: none; marker-end: url(#toward); }
.topology .return { stroke: var(--orange); stroke-width: 2; fill: none; marker-end: url(#return); }
.topology .toward-text { fill: var(--blue); }
.topology .return-text { fill: var(--orange); }
.topology .toward-head { fill: var(--blue); }
.topology .return-head { fill: var(--orange); }
@media print { section { break-inside: avoid; } }
`
