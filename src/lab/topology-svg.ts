// The report's picture of the laboratory: who is where, which way packets took, and how many.

import { bytes, compact, escapeHtml } from './format.ts'
import type { LabReport, LinkCounters } from './report.ts'
import type { Role } from './topology.ts'

/** Renders the topology with its numbers as inline SVG. */
export function renderTopology(report: LabReport): string {
  const { places, links, options } = report
  const node = report.faces.find(face => face.face === 'node')
  const gateway = report.faces.find(face => face.face === 'gateway')
  return `<svg class="topology" viewBox="0 0 1000 372" role="img" aria-label="Client and server pods, the node between them, and the gateway on the underlay">
<defs>${arrow('toward')}${arrow('return')}</defs>
${pod(report, 'client', 20)}
${pod(report, 'server', 226)}
<rect class="place" x="330" y="16" width="380" height="340" rx="10"/>
${label(350, 42, 'Node', 'title')}${label(350, 60, places.node.namespace, 'dim')}
<rect class="core" x="370" y="82" width="300" height="116" rx="8"/>
${label(390, 108, 'Detour worker', 'title')}
${label(390, 132, 'classify → decide → encap', 'toward-text')}${label(390, 152, 'restore ← decap', 'return-text')}
${label(390, 180, node === undefined ? '' : summary(node.flows.length, node.drops), 'dim')}
<rect class="part" x="370" y="256" width="300" height="70" rx="8"/>
${label(390, 282, 'cni0', 'title')}${label(390, 304, "the primary CNI's bridge, left as it is", 'dim')}
<path class="wire" d="M276 124 H300 V274 H370"/><path class="wire" d="M276 310 H370"/>
<path class="toward" d="M276 56 H314 V104 H365"/><path class="return" d="M370 126 H288 V88 H281"/>
<path class="toward" d="M276 288 H324 V158 H365"/><path class="return" d="M370 180 H312 V254 H281"/>
<rect class="place" x="824" y="60" width="164" height="164" rx="10"/>
${label(840, 86, 'Gateway', 'title')}${label(840, 104, places.gateway.namespace, 'dim')}${label(840, 122, `${places.gateway.interface}  ${places.gateway.address}`, 'dim')}
${label(840, 152, 'inspects and returns', '')}
${label(840, 176, gateway === undefined ? '' : `${compact(gateway.flows.length)} flows`, 'dim')}
${label(840, 194, gateway === undefined ? '' : drops(gateway.drops), 'dim')}
<path class="toward" d="M670 116 H818"/><path class="return" d="M824 170 H676"/>
${label(766, 76, options.profile.toUpperCase(), 'title middle')}${label(766, 94, `over ${options.family}`, 'dim middle')}
${link(766, 136, links.node, 'tx', 'toward-text')}${link(766, 190, links.node, 'rx', 'return-text')}
</svg>`
}

function pod({ places, links }: LabReport, role: Role, y: number): string {
  const place = places[role]
  const counters = links[role]
  return `<rect class="place" x="16" y="${y}" width="260" height="126" rx="10"/>
${label(34, y + 26, role === 'client' ? 'Client pod' : 'Server pod', 'title')}${label(34, y + 44, place.namespace, 'dim')}
${label(34, y + 64, `${place.interface}  ${place.address}`, 'dim')}
${label(34, y + 90, counters === undefined ? '' : `sent ${amount(counters.txPackets, counters.txBytes)}`, '')}
${label(34, y + 110, counters === undefined ? '' : `received ${amount(counters.rxPackets, counters.rxBytes)}`, '')}`
}

function link(x: number, y: number, counters: LinkCounters | undefined, way: 'rx' | 'tx', style: string): string {
  if (counters === undefined) return ''
  const packets = way === 'tx' ? counters.txPackets : counters.rxPackets
  const size = way === 'tx' ? counters.txBytes : counters.rxBytes
  return (
    label(x, y, `${compact(packets)} packets`, `${style} middle`) + label(x, y + 15, bytes(size), `${style} middle`)
  )
}

function amount(packets: number, size: number): string {
  return `${compact(packets)} packets, ${bytes(size)}`
}

function summary(flows: number, rows: { packets: number }[]): string {
  return `${compact(flows)} flows, ${drops(rows)}`
}

function drops(rows: { packets: number }[]): string {
  return `${compact(rows.reduce((sum, row) => sum + row.packets, 0))} dropped`
}

function label(x: number, y: number, text: string, style: string): string {
  const anchor = style.includes('middle') ? ' text-anchor="middle"' : ''
  return text === '' ? '' : `<text x="${x}" y="${y}" class="${style}"${anchor}>${escapeHtml(text)}</text>`
}

function arrow(name: string): string {
  return `<marker id="${name}" viewBox="0 0 8 8" refX="6" refY="4" markerWidth="7" markerHeight="7" orient="auto"><path class="${name}-head" d="M0 0 L8 4 L0 8 z" stroke="none"/></marker>`
}
