// What a node tells about itself on the control socket.

import type { Config } from '../control/config.ts'
import { flowRows } from '../control/flows.ts'
import { type AlarmRow, type AttachmentRow, type FlowRow, type Source, selectFlows } from '../control/source.ts'
import type { Underlay } from '../control/underlay.ts'
import { capabilityNames } from '../device/device.ts'
import { monotonicMs } from '../os/clock.ts'
import { queueDrops } from '../os/netns.ts'
import type { Alarm } from './alarm.ts'
import type { Attachment } from './attachment.ts'
import type { EndpointPool } from './endpoints.ts'
import { bypassNames, type Forwarders } from './forwarders.ts'
import { gateCounters } from './gates.ts'
import type { FlowJournal } from './journal.ts'
import type { Pods } from './pods.ts'
import { Tracing } from './tracing.ts'
import type { Upkeep } from './upkeep.ts'

/** The parts of a running node. */
export interface NodeParts {
  config: Config
  namespace: string
  underlay: Underlay
  endpoints: EndpointPool
  forwarders: Forwarders
  pods: Pods
  journal?: FlowJournal
}

export function nodeSource(parts: NodeParts, upkeep: Pick<Upkeep, 'list'>): Source {
  const { config, underlay, endpoints, forwarders, pods, journal } = parts
  const { profile, local = '', port, vni } = config.tunnel
  const capacity = forwarders.all.reduce((sum, { flows }) => sum + flows.capacity, 0)
  function* flows(): Generator<FlowRow> {
    for (const { name, flows } of forwarders.all)
      yield* flowRows(flows, name, {
        attachment: number => pods.id(number),
        endpoint: number => endpoints.nameOf(number),
        rule: number => bypassNames(config)[number],
      })
  }
  const tracing = new Tracing({
    workers: forwarders.all.map(({ name }) => name),
    attachment: number => pods.id(number),
    numberOf: id => pods.numberOf(id),
    endpoint: number => endpoints.nameOf(number),
    bypass: () => bypassNames(config),
    trace: inputs => forwarders.trace(inputs),
  })
  return {
    info: () => ({ face: 'node', profile }),
    counters: () => [...forwarders.counters(), gateCounters(pods.attachments)],
    flows: query => selectFlows(flows(), query, capacity),
    attachments: () => pods.attachments.map(attachment => attachmentRow(attachment, pods)),
    underlay: () => [
      {
        device: underlay.device,
        profile,
        local,
        remote: endpoints.addresses().join(' '),
        port,
        vni,
        mtu: endpoints.mtu,
        rung: underlay.offloadRung,
        capabilities: underlay.features,
        missed: underlay.missed(),
      },
    ],
    alarms: () => alarmRows(upkeep.list()),
    endpoints: () => endpoints.rows(number => forwarders.flowsTo(number)),
    flowLogLost: () => journal?.lost ?? 0,
    trace: request => tracing.ask(request),
    workers: () => {
      const now = monotonicMs()
      return forwarders.all.map(({ name, flows }) => ({
        worker: name,
        flows: flows.count,
        capacity: flows.capacity,
        created: flows.created,
        ageMs: Math.max(0, now - flows.now),
      }))
    },
  }
}

function alarmRows(alarms: Alarm[]): AlarmRow[] {
  const now = monotonicMs()
  const rows = alarms.map(({ since, ...alarm }) => ({ ...alarm, sinceMs: Math.max(0, now - since) }))
  return rows.sort((a, b) => Number(b.raised) - Number(a.raised) || a.sinceMs - b.sinceMs)
}

function attachmentRow(attachment: Attachment, pods: Pods): AttachmentRow {
  const { redirected, passed, dropped } = attachment.failCounters()
  return {
    id: attachment.id,
    pod: pods.label(pods.numberOf(attachment.id) ?? -1) || undefined,
    namespace: attachment.namespace,
    interface: attachment.interface,
    mac: attachment.mac,
    addresses: [...attachment.addresses],
    mtu: attachment.mtu,
    failMode: attachment.failMode,
    heartbeatAgeMs: attachment.heartbeatAgeMs(),
    heartbeatLimitMs: attachment.heartbeatLimitMs,
    attachRung: attachment.rung,
    offloadRung: capabilityNames(attachment.capabilities).join(' '),
    redirected,
    failPassed: passed,
    failDropped: dropped,
    missed: queueDrops(attachment.tapName, attachment.namespace),
  }
}
