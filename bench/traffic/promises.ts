// What a soak holds the path to: balanced counters, flat memory, every loss explained. Each check returns what is wrong.

import type { StageRow } from '../../src/control/protocol.ts'
import type { Counted, Seen } from './mixed.ts'

/** Devices receive and send, so their in is not their out. */
const DEVICE = /^(tap|udp|xdp|packet|capture)\b/

/** Growth of resident memory, from the median of the first quarter of the samples to that of the last, that counts as none. */
const GROWTH_MIB = 8
const GROWTH = 1.05

/** Samples of resident memory after the warm-up, MiB. */
export function flat(samples: readonly number[]): string[] {
  const quarter = Math.ceil(samples.length / 4)
  const [first, last] = [samples.slice(0, quarter), samples.slice(-quarter)].map(median)
  return last > Math.max(first + GROWTH_MIB, first * GROWTH)
    ? [`resident memory grew from ${first.toFixed(1)} to ${last.toFixed(1)} MiB`]
    : []
}

function median(samples: readonly number[]): number {
  return samples.toSorted((x, y) => x - y)[Math.floor(samples.length / 2)]
}

/** Stages, with nothing under way, for which in + created = out + dropped does not hold. */
export function unbalanced(face: string, stages: readonly StageRow[]): string[] {
  return stages
    .filter(({ stage }) => !DEVICE.test(stage))
    .filter(row => row.inPackets + row.created !== row.outPackets + row.drops)
    .map(({ worker, stage, inPackets, created, outPackets, drops }) => {
      return `${face} ${worker} ${stage}: in ${inPackets} + created ${created} is not out ${outPackets} + dropped ${drops}`
    })
}

/** Frames that a face took in or made, less those it gave out or dropped: with nothing under way, 0 but for what `slack` allows. */
export function leaked(face: string, stages: readonly StageRow[], slack: number): string[] {
  const sum = (rows: readonly StageRow[], column: 'inPackets' | 'outPackets' | 'created' | 'drops') =>
    rows.reduce((sum, row) => sum + row[column], 0)
  const devices = stages.filter(({ stage }) => DEVICE.test(stage))
  const balance = sum(devices, 'inPackets') + sum(stages, 'created') - sum(devices, 'outPackets') - sum(stages, 'drops')
  return Math.abs(balance) > slack ? [`${face}: ${balance} frames are missing from its accounts`] : []
}

/** Datagrams and echoes that were lost with no counter that says where, nothing being under way. */
export function unexplained(seen: Seen, faces: readonly Counted[], socketDrops: number): string[] {
  const [client, server] = seen
  const sent = client.udpSent + server.udpSent + 2 * client.echoSent
  const received = client.udpReceived + server.udpReceived + 2 * client.echoReceived
  const lost = sent - received
  const dropped = faces.flatMap(({ drops }) => drops).reduce((sum, { packets }) => sum + packets, 0)
  const missed = faces.reduce((sum, face) => sum + face.missed + face.failed, 0)
  const known = dropped + missed + socketDrops
  return lost > known ? [`${lost} datagrams and echoes lost; counters explain ${known}`] : []
}
