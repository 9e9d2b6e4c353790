// A page that plots results: one plot a question, a bar a contender, whiskers and a dot a round. It needs neither network nor script.

import { writeFileSync } from 'node:fs'
import { escapeHtml } from '../src/lab/format.ts'
import { PAGE_STYLE, pageHead } from '../src/lab/page-style.ts'
import { number } from './harness.ts'
import type { Result } from './result.ts'

const STYLE = `
h3 { margin: 1.6rem 0 0; font-size: 1rem; }
h3 span { color: var(--dim); font-weight: 400; font-size: .87rem; }
nav a { margin-right: .9rem; }
.bars { table-layout: fixed; min-width: 46rem; margin: .3rem 0 0; }
.bars th, .bars td { padding: .1rem .5rem; border: 0; background: none; vertical-align: middle; font-weight: 400; white-space: normal; }
.bars thead th { color: var(--dim); font-size: .8rem; }
.bars tbody th { color: var(--ink); line-height: 1.25; }
.bars .ours th, .bars .ours .n { font-weight: 600; }
.bars small { display: block; color: var(--dim); font-size: .78rem; font-weight: 400; line-height: 1.2; }
.bars td:nth-child(2) { padding-inline: 0; }
.bars svg { display: block; width: 100%; height: 2.1rem; overflow: visible; }
.bars tfoot svg { height: 1.2rem; }
.bars tfoot text { fill: var(--dim); font-size: 11px; text-anchor: middle; }
.grid { stroke: var(--line); }
.bar { fill: var(--other); }
.bar.ours { fill: var(--ours); }
.bar.baseline { fill: var(--base); }
.whisker { stroke: var(--ink); stroke-width: 1.5; }
.round { fill: var(--ink); fill-opacity: .38; }
.swatch { display: inline-block; width: 1.1rem; height: .8rem; border-radius: 2px; }
:root { --ours: #2f86c9; --base: #8b959e; --other: #c6cdd3; }
@media (prefers-color-scheme: dark) { :root { --ours: #3f8fcc; --base: #737d86; --other: #474f57; } }
@media print { .bars { break-inside: avoid; } }
`

/** Renders the page of pooled results. */
export function renderReport(results: readonly Result[]): string {
  const benches = groups(results, result => result.bench)
  const links = benches.map(([name]) => `<a href="#${encodeURIComponent(name)}">${escapeHtml(name)}</a>`)
  return `${pageHead('Detour, measured', PAGE_STYLE + STYLE)}
<body>
<header>
<h1>Detour, measured</h1>
<p class="meta">${meta(results)}</p>
</header>
<main>
<p class="lead">Every question has a baseline that was measured in the same rounds, the order alternated. “Better” says how many times better than it a contender
was: the median of the rounds' own ratios, and their 10th to 90th percentile.</p>
<p class="key"><span class="swatch" style="background:var(--ours)"></span>Detour <span class="swatch" style="background:var(--base)"></span>baseline
<span class="swatch" style="background:var(--other)"></span>another way; bar: median, whisker: 10th to 90th percentile, dot: a round</p>
<nav aria-label="Benches">${links.join('')}</nav>
${benches.map(([name, of]) => section(name, of)).join('\n')}
</main>
</body>
</html>
`
}

/** Writes the page. Throws what the file system says. */
export function writeReport(path: string, results: readonly Result[]): void {
  writeFileSync(path, renderReport(results))
}

function meta(results: readonly Result[]): string {
  if (results.length === 0) return '<span>nothing was measured</span>'
  const dates = results.map(result => result.date).toSorted()
  const minute = (date: string) => `${date.slice(0, 16).replace('T', ' ')} UTC`
  const loads = results.map(result => result.load)
  const rounds = range(results.map(result => result.rounds))
  return [
    ...new Set(results.map(result => result.machine)),
    [...new Set([dates[0], dates[dates.length - 1]].map(minute))].join(' to '),
    `${rounds} ${rounds === '1' ? 'round' : 'rounds'}`,
    `load ${range(loads.map(load => Number(load.toFixed(1))))} when a bench began`,
    ...(results.some(result => result.quick) ? ['measured by --quick: only to see that everything runs'] : []),
  ]
    .map(part => `<span>${escapeHtml(part)}</span>`)
    .join('')
}

function range(values: number[]): string {
  return [...new Set([Math.min(...values), Math.max(...values)])].join(' to ')
}

function groups(results: readonly Result[], name: (result: Result) => string): [string, Result[]][] {
  const found = new Map<string, Result[]>()
  for (const result of results) found.set(name(result), [...(found.get(name(result)) ?? []), result])
  return [...found]
}

function section(name: string, results: Result[]): string {
  const plots = groups(results, result => result.question).map(([question, of]) => plot(question, of))
  return `<section id="${escapeHtml(name)}"><h2>${escapeHtml(name)}</h2>${plots.join('\n')}</section>`
}

function plot(question: string, results: Result[]): string {
  const { unit, goal } = results[0]
  const top = Math.max(...results.flatMap(({ samples, high }) => [...samples, high])) || 1
  const marks = ticks(top)
  const share = (value: number) => `${((value / Math.max(top, marks[marks.length - 1])) * 100).toFixed(2)}%`
  const grid = marks
    .map(mark => `<line class="grid" x1="${share(mark)}" x2="${share(mark)}" y1="0" y2="100%"/>`)
    .join('')
  const rows = results.map(result => row(result, share, grid)).join('\n')
  const labels = marks.map(mark => `<text x="${share(mark)}" y="12">${tick(mark)}</text>`).join('')
  return `<h3>${escapeHtml(question)} <span>${escapeHtml(unit)}, ${goal} is better</span></h3>
<div class="scroll"><table class="bars"><colgroup><col style="width:26%"><col><col style="width:15%"><col style="width:13%"></colgroup>
<thead><tr><th scope="col">Contender</th><th></th><th scope="col" class="n">Median</th><th scope="col" class="n">Better</th></tr></thead>
<tbody>
${rows}
</tbody>
<tfoot><tr><td></td><td aria-hidden="true"><svg>${labels}</svg></td><td></td><td></td></tr></tfoot></table></div>`
}

function row(result: Result, share: (value: number) => string, grid: string): string {
  const { contender, baseline, rival, unit, median, low, high, better, betterLow, betterHigh, samples } = result
  const kind = contender === baseline ? 'baseline' : rival ? 'rival' : 'ours'
  const whisker = [
    `<line class="whisker" x1="${share(low)}" x2="${share(high)}" y1="50%" y2="50%"/>`,
    ...[low, high].map(at => `<line class="whisker" x1="${share(at)}" x2="${share(at)}" y1="35%" y2="65%"/>`),
  ]
  const rounds = samples.map(sample => `<circle class="round" cx="${share(sample)}" cy="50%" r="2.5"/>`)
  const bar = `<rect class="bar ${kind}" y="18%" height="64%" width="${share(median)}"/>`
  const ratio =
    kind === 'baseline' ? 'baseline' : `${number(better)}×<small>${number(betterLow)} to ${number(betterHigh)}</small>`
  return `<tr class="${kind}"><th scope="row">${escapeHtml(contender)}</th>
<td aria-hidden="true"><svg>${grid}${bar}${whisker.join('')}${rounds.join('')}</svg></td>
<td class="n">${number(median)} ${escapeHtml(unit)}<small>${number(low)} to ${number(high)}</small></td><td class="n">${ratio}</td></tr>`
}

/** From 0 to at least nine tenths of `top`, three to six round numbers. */
function ticks(top: number): number[] {
  const power = 10 ** Math.floor(Math.log10(top))
  const step = [0.1, 0.2, 0.25, 0.5, 1, 2, 2.5].map(factor => factor * power).find(size => top / size <= 5) ?? power * 5
  return Array.from({ length: Math.floor(top / step) + 1 }, (_, i) => i * step)
}

function tick(value: number): string {
  return Number(value.toPrecision(3)).toLocaleString('en-US', { maximumFractionDigits: 4 })
}
