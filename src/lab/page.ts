// The report as one HTML page that needs no network: tables and topology are plain HTML, plots are drawn by uPlot.

import { readFileSync, writeFileSync } from 'node:fs'
import { createRequire } from 'node:module'
import { join } from 'node:path'
import type { DropRow } from '../control/protocol.ts'
import { bytes, compact, escapeHtml } from './format.ts'
import { PAGE_SCRIPT } from './page-script.ts'
import { PAGE_STYLE, pageHead } from './page-style.ts'
import { type FaceSnapshot, type LabReport, makeReportFolder, type StepResult } from './report.ts'
import { renderTopology } from './topology-svg.ts'

/** Renders the whole page. */
export function renderPage(report: LabReport): string {
  const ok = report.steps.filter(step => step.ok === true).length
  const all = ok === report.steps.length && ok > 0
  const verdict = all
    ? `All ${ok} steps did what they should`
    : `${report.steps.length - ok} of ${report.steps.length} steps did not do what they should`
  return `${pageHead(
    `Detour laboratory: ${verdict}`,
    `${library('uplot/dist/uPlot.min.css')}
${PAGE_STYLE}`,
    "script-src 'unsafe-inline'; ",
  )}
<body>
<header>
<h1>Detour laboratory</h1>
<p class="verdict ${all ? 'ok' : 'bad'}"><span aria-hidden="true">${all ? '✓' : '✗'}</span> ${escapeHtml(verdict)}</p>
<p class="meta">${meta(report)}</p>
</header>
<main>
${tiles(report)}
${section('topology', 'Topology', 'Network namespaces on one machine; packets as the kernel counted them on each interface, from the start of gateway and node to the end of the bulk transfer.', renderTopology(report))}
${section('steps', 'Steps', '', steps(report.steps))}
${throughput(report)}
${failMode(report)}
${report.faces.map(counters).join('\n')}
${captures(report)}
</main>
<script type="application/json" id="data">${embed(plotData(report))}</script>
<script>${library('uplot/dist/uPlot.iife.min.js').replaceAll('</script', '<\\/script')}</script>
<script>${PAGE_SCRIPT}</script>
</body>
</html>
`
}

function library(file: string): string {
  return readFileSync(createRequire(import.meta.url).resolve(file), 'utf8')
}

// NB: `<` must not appear in the data, or a "</script>" inside a string would end the element.
function embed(data: unknown): string {
  return JSON.stringify(data).replaceAll('<', '\\u003c')
}

function meta(report: LabReport): string {
  const { machine, options } = report
  const parts = [
    new Date(report.startedAt).toUTCString(),
    `${options.profile.toUpperCase()} over ${options.family}`,
    `fail mode ${options.failMode}`,
    `Linux ${machine.kernel}`,
    `${machine.cpus} × ${machine.cpuModel}`,
    `${machine.memoryGib} GiB`,
    `Node.js ${machine.node}`,
    `Detour ${machine.detour}`,
  ]
  return parts.map(part => `<span>${escapeHtml(part)}</span>`).join('')
}

function section(id: string, title: string, lead: string, body: string): string {
  const text = lead === '' ? '' : `<p class="lead">${escapeHtml(lead)}</p>`
  return `<section id="${id}"><h2>${escapeHtml(title)}</h2>${text}${body}</section>`
}

function tiles(report: LabReport): string {
  const [base, through] = report.throughput.map(entry => entry.bulk.gbps)
  const list: [value: string, unit: string, label: string][] = []
  if (through !== undefined) list.push([through.toFixed(1), 'Gbit/s', 'TCP through tunnel, gateway and back'])
  if (base !== undefined) list.push([base.toFixed(1), 'Gbit/s', 'the same without Detour'])
  const gateway = report.faces.find(face => face.face === 'gateway')
  const stopped = gateway?.drops.filter(isPolicy).reduce((sum, row) => sum + row.packets, 0)
  if (stopped !== undefined)
    list.push([compact(stopped), stopped === 1 ? 'packet' : 'packets', 'stopped by a rule of the gateway'])
  const lost = report.probe?.records.filter(record => record.answeredMs === null).length
  if (lost !== undefined)
    list.push([compact(lost), `of ${compact(report.probe!.records.length)}`, 'probes lost while processes were killed'])
  const items = list.map(
    ([value, unit, label]) => `<li><b>${value}</b> <i>${unit}</i><span>${escapeHtml(label)}</span></li>`,
  )
  return items.length === 0 ? '' : `<ul class="tiles">${items.join('')}</ul>`
}

function isPolicy(row: DropRow): boolean {
  return row.reason === 'policy' || row.reason === 'reset'
}

function steps(results: StepResult[]): string {
  const rows = results.map((step, at) => {
    const verdict =
      step.ok === null ? ['none', '–', 'not reached'] : step.ok ? ['ok', '✓', 'as expected'] : ['bad', '✗', 'failed']
    const badge = `<span class="badge ${verdict[0]}"><span aria-hidden="true">${verdict[1]}</span> ${verdict[2]}</span>`
    return [
      String(at + 1),
      escapeHtml(step.name),
      escapeHtml(step.expectation),
      escapeHtml(step.observed),
      `${(step.ms / 1000).toFixed(1)} s`,
      badge,
    ]
  })
  return table('Steps of the run', ['#', 'Step', 'Should', 'Did', '>Time', 'Verdict'], rows)
}

function throughput(report: LabReport): string {
  if (report.throughput.length === 0) return ''
  const words = report.throughput.map(
    entry => `${entry.label}: ${entry.bulk.gbps.toFixed(2)} Gbit/s (${entry.bulk.tool})`,
  )
  const lead = `One TCP stream from client to server. ${words.join('; ')}.`
  return section(
    'throughput',
    'Throughput',
    lead,
    plot('plot-throughput', `Line plot of throughput over time. ${words.join('; ')}.`),
  )
}

function failMode(report: LabReport): string {
  if (report.probe === null) return ''
  const { records, intervalMs, events } = report.probe
  const lost = records.filter(record => record.answeredMs === null).length
  const summary = `${records.length} UDP probes, one every ${intervalMs} ms; ${lost} lost. Fail mode ${report.options.failMode}.`
  const legend =
    '<p class="key"><span class="dot"></span>answered probe, by round trip <span class="band"></span>probes lost <span class="event"></span>what was done</p>'
  const list = events.map(
    event => `${((event.atMs - (records[0]?.sentMs ?? event.atMs)) / 1000).toFixed(1)} s: ${event.label}`,
  )
  return section(
    'failmode',
    'Fail mode',
    summary,
    legend + plot('plot-probe', `Scatter plot of probe round trips over time. ${summary} ${list.join('; ')}.`),
  )
}

function plot(id: string, label: string): string {
  return `<div class="plot" id="${id}" role="img" aria-label="${escapeHtml(label)}"></div>`
}

function counters(face: FaceSnapshot): string {
  const stages = face.stages.map(row => [
    escapeHtml(row.worker),
    escapeHtml(row.stage),
    compact(row.inPackets),
    bytes(row.inBytes),
    compact(row.outPackets),
    bytes(row.outBytes),
    compact(row.drops),
  ])
  const drops = face.drops.map(row => [
    escapeHtml(row.worker),
    escapeHtml(row.stage),
    `<code>${escapeHtml(row.reason)}</code>`,
    escapeHtml(row.text),
    compact(row.packets),
  ])
  const flows = face.flows.map(row => [
    protocolName(row.protocol),
    escapeHtml(endpoint(row.source, row.sourcePort)),
    escapeHtml(endpoint(row.destination, row.destinationPort)),
    `<span class="badge ${row.verdict === 'drop' || row.verdict === 'reset' ? 'bad' : 'ok'}">${escapeHtml(row.verdict)}</span>`,
    compact(row.sentPackets),
    bytes(row.sentBytes),
    compact(row.receivedPackets),
    bytes(row.receivedBytes),
  ])
  const body = [
    ...devices(face),
    table(
      `Stages of the ${face.face}`,
      ['Worker', 'Stage', '>Packets in', '>Bytes in', '>Packets out', '>Bytes out', '>Dropped'],
      stages,
    ),
    table(
      `Drops of the ${face.face}, by stage and reason`,
      ['Worker', 'Stage', 'Reason', 'Meaning', '>Packets'],
      drops,
    ),
    table(
      `Flows of the ${face.face}, largest first`,
      [
        'Protocol',
        'Source',
        'Destination',
        'Verdict',
        '>Sent packets',
        '>Sent bytes',
        '>Received packets',
        '>Received bytes',
      ],
      flows,
    ),
  ]
  const title = face.face[0].toUpperCase() + face.face.slice(1)
  return section(
    `face-${face.face}`,
    title,
    'Counters at the end of the bulk transfer; a super-packet counts as one.',
    body.join(''),
  )
}

/** What the face is attached to; a gateway has no attachments. */
function devices({ attachments, underlay }: FaceSnapshot): string[] {
  const pods = attachments.map(row => [
    escapeHtml(row.id),
    escapeHtml(row.interface),
    escapeHtml(row.mac),
    String(row.mtu),
    `fail-${row.failMode}, ${row.heartbeatLimitMs} ms`,
    escapeHtml(row.attachRung),
  ])
  const tunnels = underlay.map(row => [
    escapeHtml(row.device),
    escapeHtml(row.local),
    escapeHtml(row.remote),
    String(row.port),
    String(row.vni),
    String(row.mtu),
    escapeHtml(row.rung),
  ])
  return [
    ...(pods.length === 0
      ? []
      : [table('Attachments', ['Id', 'Interface', 'MAC', '>MTU', 'Fail mode', 'Held by'], pods)]),
    ...(tunnels.length === 0
      ? []
      : [table('Underlay', ['Device', 'Local', 'Remote', '>Port', '>VNI', '>MTU', 'Offload rung'], tunnels)]),
  ]
}

function captures(report: LabReport): string {
  if (report.captures.length === 0) return ''
  const rows = report.captures.map(({ file, text }) => [
    `<a href="${escapeHtml(file)}">${escapeHtml(file)}</a>`,
    escapeHtml(text),
  ])
  return section(
    'captures',
    'Captures',
    'Beside this page; Wireshark opens them.',
    table('Packet captures', ['File', 'What'], rows),
  )
}

/** A heading that starts with `>` is a column of numbers. Cells are HTML already. */
function table(caption: string, head: string[], rows: string[][]): string {
  const numeric = head.map(name => (name.startsWith('>') ? ' class="n"' : ''))
  const heads = head
    .map((name, at) => `<th scope="col"${numeric[at]}>${escapeHtml(name.replace('>', ''))}</th>`)
    .join('')
  const body = rows
    .map(row => `<tr>${row.map((cell, at) => `<td${numeric[at]}>${cell}</td>`).join('')}</tr>`)
    .join('\n')
  const none = `<tr><td class="none" colspan="${head.length}">none</td></tr>`
  return `<div class="scroll"><table><caption>${escapeHtml(caption)}</caption><thead><tr>${heads}</tr></thead><tbody>${body || none}</tbody></table></div>`
}

function endpoint(address: string, port: number): string {
  return address.includes(':') ? `[${address}]:${port}` : `${address}:${port}`
}

function protocolName(protocol: number): string {
  return { 1: 'ICMP', 6: 'TCP', 17: 'UDP', 58: 'ICMPv6' }[protocol] ?? String(protocol)
}

function plotData(report: LabReport) {
  const first = report.probe?.records[0]?.sentMs ?? 0
  return {
    throughput: report.throughput.map(({ label, bulk }) => ({ label, series: bulk.series })),
    probe: report.probe && {
      intervalMs: report.probe.intervalMs,
      records: report.probe.records.map(({ sentMs, answeredMs }) => [
        (sentMs - first) / 1000,
        answeredMs === null ? null : Math.max(answeredMs - sentMs, 0.01),
      ]),
      events: report.probe.events.map(({ atMs, label }) => [(atMs - first) / 1000, label]),
    },
  }
}

/** Writes `index.html`, which needs nothing else, and `report.json` to the folder; returns the page's path. */
export function writeReport(folder: string, report: LabReport): string {
  makeReportFolder(folder)
  writeFileSync(join(folder, 'report.json'), `${JSON.stringify(report, null, 1)}\n`)
  const page = join(folder, 'index.html')
  writeFileSync(page, renderPage(report))
  return page
}
