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
<rect class="place" x="290" y="16" width="420" height="340" rx="10"/>
${label(310, 42, 'Node', 'title')}${label(310, 60, places.node.namespace, 'dim')}
<rect class="core" x="330" y="86" width="340" height="112" rx="8"/>
${label(350, 112, 'Detour worker', 'title')}
${label(350, 134, 'classify → decide → encap', 'toward-text')}${label(350, 154, 'restore ← decap', 'return-text')}
${label(350, 180, node === undefined ? '' : summary(node.flows.length, node.drops), 'dim')}
<rect class="part" x="330" y="256" width="340" height="70" rx="8"/>
${label(350, 282, 'cni0', 'title')}${label(350, 304, "the primary CNI's bridge: untouched, carries the inspected packets", 'dim')}
<path class="wire" d="M250 120 H270 V274 H330"/><path class="wire" d="M250 306 H330"/>
<path class="toward" d="M250 70 H282 V112 H326"/><path class="return" d="M330 140 H262 V92 H254"/>
<path class="toward" d="M250 270 H290 V164 H326"/><path class="return" d="M330 184 H276 V250 H254"/>
<rect class="place" x="800" y="60" width="184" height="164" rx="10"/>
${label(818, 86, 'Gateway', 'title')}${label(818, 104, places.gateway.namespace, 'dim')}${label(818, 124, places.gateway.address, 'dim')}
${label(818, 154, 'inspects, returns or drops', '')}
${label(818, 176, gateway === undefined ? '' : `${compact(gateway.flows.length)} flows`, 'dim')}
${label(818, 194, gateway === undefined ? '' : drops(gateway.drops), 'dim')}
<path class="toward" d="M670 116 H794"/><path class="return" d="M800 170 H676"/>
${label(735, 84, options.profile.toUpperCase(), 'title middle')}${label(735, 100, `over ${options.family}`, 'dim middle')}
${link(735, 134, links.node, 'tx', 'toward-text')}${link(735, 188, links.node, 'rx', 'return-text')}
</svg>`
}

function pod({ places, links }: LabReport, role: Role, y: number): string {
  const place = places[role]
  const counters = links[role]
  return `<rect class="place" x="16" y="${y}" width="234" height="126" rx="10"/>
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
