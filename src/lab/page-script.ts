// The script of the report page: draws the two plots with uPlot in the colours of the style sheet, again when the
// window's width or the colour scheme changes. Plain browser JavaScript; it is inlined as it stands.

export const PAGE_SCRIPT = `
'use strict'
const data = JSON.parse(document.getElementById('data').textContent)
const colour = name => getComputedStyle(document.documentElement).getPropertyValue('--' + name).trim()
const font = '12px ' + getComputedStyle(document.body).fontFamily
let plots = []

function axis(label, more) {
  return Object.assign({ label, stroke: colour('dim'), font, labelFont: font, labelSize: 22,
    grid: { stroke: colour('line'), width: 1 }, ticks: { stroke: colour('line'), width: 1 } }, more)
}

function drawThroughput(box) {
  const strokes = [colour('orange'), colour('blue')]
  const series = data.throughput.map((entry, at) => ({ label: entry.label, stroke: strokes[at % 2], width: 2, spanGaps: true,
    dash: at === 0 ? [7, 4] : undefined, points: { show: false }, value: (_, v) => v == null ? '–' : v.toFixed(2) + ' Gbit/s' }))
  const tables = data.throughput.map(entry => [entry.series.map(s => +s[0].toFixed(2)), entry.series.map(s => s[1])])
  return new uPlot({
    width: box.clientWidth, height: 260,
    scales: { x: { time: false }, y: { range: (_, low, high) => [0, (high || 1) * 1.1] } },
    axes: [axis('seconds since the transfer began'), axis('Gbit/s', { size: 56 })],
    series: [{ label: 'Time', value: (_, v) => v == null ? '–' : v.toFixed(2) + ' s' }, ...series],
  }, uPlot.join(tables), box)
}

const decade = (value, round) => 10 ** round(Math.log10(value))

/** Stretches of lost probes: [from, to, how many]. */
function gaps(records, interval) {
  const found = []
  for (let at = 0; at < records.length; at++) {
    if (records[at][1] !== null) continue
    const from = at
    while (at + 1 < records.length && records[at + 1][1] === null) at++
    found.push([records[from][0], records[at][0] + interval, at - from + 1])
  }
  return found
}

function drawProbe(box) {
  const { records, events, intervalMs } = data.probe
  const lost = gaps(records, intervalMs / 1000)
  const ratio = window.devicePixelRatio || 1
  const bands = u => {
    const { ctx, bbox } = u
    ctx.save()
    ctx.font = Math.round(11 * ratio) + font.slice(2)
    for (const [from, to, count] of lost) {
      const left = u.valToPos(from, 'x', true), right = u.valToPos(to, 'x', true)
      ctx.fillStyle = colour('band')
      ctx.fillRect(left, bbox.top, Math.max(right - left, 2 * ratio), bbox.height)
      ctx.fillStyle = colour('bad')
      ctx.fillRect(left, bbox.top, 1.5 * ratio, bbox.height)
      ctx.textAlign = 'left'
      ctx.fillText(count + ' lost', left + 5 * ratio, bbox.top + bbox.height - 8 * ratio)
    }
    ctx.restore()
  }
  const marks = u => {
    const { ctx, bbox } = u
    ctx.save()
    ctx.strokeStyle = ctx.fillStyle = colour('event')
    ctx.lineWidth = 1.5 * ratio
    ctx.setLineDash([5 * ratio, 4 * ratio])
    ctx.font = '600 ' + Math.round(11.5 * ratio) + font.slice(2)
    events.forEach(([at, label], index) => {
      const x = u.valToPos(at, 'x', true)
      ctx.beginPath()
      ctx.moveTo(x, bbox.top)
      ctx.lineTo(x, bbox.top + bbox.height)
      ctx.stroke()
      const wide = ctx.measureText(label).width + 10 * ratio
      const left = x + wide < bbox.left + bbox.width ? x + 2 * ratio : x - wide - 2 * ratio
      const top = bbox.top + (3 + 18 * (index % 3)) * ratio
      ctx.fillStyle = colour('card')
      ctx.fillRect(left, top, wide, 16 * ratio)
      ctx.fillStyle = colour('ink')
      ctx.textAlign = 'left'
      ctx.fillText(label, left + 5 * ratio, top + 12 * ratio)
    })
    ctx.restore()
  }
  return new uPlot({
    width: box.clientWidth, height: 280,
    scales: { x: { time: false }, y: { distr: 3, range: (_, low, high) => [decade(low || 0.1, Math.floor), decade(high || 1, Math.ceil) * 4] } },
    axes: [axis('seconds since the first probe'), axis('round trip, ms', { size: 62, values: (_, list) => list.map(v => v == null ? '' : String(v)) })],
    series: [
      { label: 'Time', value: (_, v) => v == null ? '–' : v.toFixed(2) + ' s' },
      { label: 'Round trip', stroke: colour('blue'), paths: () => null,
        points: { show: true, size: 4, width: 0, fill: colour('blue') }, value: (_, v) => v == null ? '–' : v.toFixed(2) + ' ms' },
    ],
    hooks: { drawAxes: [bands], draw: [marks] },
  }, [records.map(r => r[0]), records.map(r => r[1])], box)
}

function draw() {
  for (const plot of plots) plot.destroy()
  plots = []
  const throughput = document.getElementById('plot-throughput'), probe = document.getElementById('plot-probe')
  if (throughput) plots.push(drawThroughput(throughput))
  if (probe) plots.push(drawProbe(probe))
}

draw()
matchMedia('(prefers-color-scheme: dark)').addEventListener('change', draw)
let width = innerWidth
addEventListener('resize', () => { if (innerWidth !== width) { width = innerWidth; draw() } })
`
