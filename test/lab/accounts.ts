// The accounts of a replay: every packet that came to a stage left it, was dropped or is counted as made there, and what
// left one stage came to the next. Read from the report as data.

import { expect } from 'vitest'

export interface StageRow {
  stage: string
  inPackets: number
  outPackets: number
  created: number
  drops: { reason: string; packets: number }[]
}

export interface ReportData {
  packets: number
  sent: number
  unchanged: number
  changed: number
  notReturned: number
  made: number
  flows: number
  faults: string[]
  verdicts: { verdict: string; packets: number; bytes: number }[]
  node: StageRow[]
  gateway: StageRow[]
}

export const dropped = (row: StageRow) => row.drops.reduce((sum, { packets }) => sum + packets, 0)

/** Packets by verdict. */
export const verdictsOf = ({ verdicts }: ReportData) =>
  Object.fromEntries(verdicts.map(({ verdict, packets }) => [verdict, packets]))

/** Packets by `stage reason` of one side. */
export const dropsOf = (rows: StageRow[]) =>
  Object.fromEntries(rows.flatMap(row => row.drops.map(({ reason, packets }) => [`${row.stage} ${reason}`, packets])))

/** Devices receive and send, so their in is not their out. */
const DEVICES = /^(read|write|loopback|udp|faults|capture)/

/** Asserts that nothing is missing and nothing counted twice; `packets` is what the capture holds. */
export function expectBalance(report: ReportData, packets: number): void {
  const { node, gateway } = report
  const at = (side: StageRow[], stage: string) => {
    const row = side.find(each => each.stage.startsWith(stage))
    if (row === undefined) throw new Error(`no stage ${stage}`)
    return row
  }
  for (const row of [...node, ...gateway].filter(({ stage }) => !DEVICES.test(stage)))
    expect([row.stage, row.inPackets + row.created]).toEqual([row.stage, row.outPackets + dropped(row)])

  expect(report.packets).toBe(packets)
  expect(at(node, 'read').inPackets).toBe(packets)
  expect(at(node, 'classify').inPackets).toBe(packets - dropped(at(node, 'read')))
  expect(at(node, 'decide').inPackets + at(node, 'local').inPackets).toBe(at(node, 'classify').outPackets)
  expect(at(node, 'encap').inPackets + at(node, 'passed').inPackets).toBe(at(node, 'decide').outPackets)
  expect(at(node, 'encap').inPackets).toBe(report.sent)
  const { steer, pass, local, drop } = verdictsOf(report)
  expect(steer + pass + local + drop).toBe(packets)
  expect(steer).toBe(report.sent)
  expect(report.unchanged + report.changed + report.notReturned).toBe(report.sent)
  expect(at(node, 'restore').outPackets).toBe(report.unchanged + report.changed + report.made)
  const chain: [StageRow[], string][] = [
    [node, 'encap'],
    [node, 'complete underlay'],
  ]
  if (gateway.length > 0 && !node.some(({ stage }) => stage.startsWith('faults'))) {
    expect(at(node, 'loopback').outPackets).toBe(at(node, 'complete underlay').outPackets)
    expect(at(gateway, 'loopback').inPackets).toBe(at(node, 'loopback').outPackets)
    expect(at(node, 'loopback').inPackets).toBe(at(gateway, 'loopback').outPackets)
  }
  expectChain(chain)
  if (gateway.length > 0) expectChain(['split', 'decap', 'inspect', 'turn', 'complete'].map(name => [gateway, name]))
  expectChain(['split', 'decap', 'restore'].map(name => [node, name]))

  function expectChain(links: [StageRow[], string][]): void {
    for (let i = 1; i < links.length; i++)
      expect([links[i][1], at(...links[i]).inPackets]).toEqual([links[i][1], at(...links[i - 1]).outPackets])
  }
}
