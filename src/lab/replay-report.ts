// What a replay came to: put together from what its workers counted.

import { REPLAY_STATUS } from '../control/worker-input.ts'
import { type StageCounters, sumCounters } from '../memory/counters.ts'

export interface ReplayReport {
  input: string
  packets: number
  sent: number
  /** Of those sent: returned bit for bit, returned otherwise, and not returned. */
  unchanged: number
  changed: number
  notReturned: number
  /** Came from the endpoint and are none of those sent: its own answers, or second copies. */
  made: number
  flows: number
  seconds: number
  packetsPerSecond: number
  latencyP50Us: number
  latencyP99Us: number
  /** Stages of the node's side and of the gateway, summed over workers. */
  node: StageCounters[]
  gateway: StageCounters[]
  /** What was wrong with a file; everything before it was replayed. */
  faults: string[]
}

/** What one replay worker and its gateway counted. */
export interface Tally {
  counters: { node: StageCounters[]; gateway: StageCounters[] }
  /** Words of REPLAY_STATUS. */
  status: Float64Array
}

/** Stages that every worker runs on the whole file. */
const WHOLE = new Set(['read', 'classify'])

/** What a replay came to: the sums over its pairs. */
export function report(input: string, pairs: Tally[], faults: string[], seconds: number): ReplayReport {
  const sum = (word: number) => pairs.reduce((total, { status }) => total + status[word], 0)
  const worst = (word: number) => Math.max(...pairs.map(({ status }) => status[word]))
  const packets = worst(REPLAY_STATUS.READ)
  const [sent, unchanged, changed] = [REPLAY_STATUS.SENT, REPLAY_STATUS.UNCHANGED, REPLAY_STATUS.CHANGED].map(sum)
  return {
    input,
    packets,
    sent,
    unchanged,
    changed,
    notReturned: sent - unchanged - changed,
    made: sum(REPLAY_STATUS.MADE),
    flows: sum(REPLAY_STATUS.FLOWS),
    seconds,
    packetsPerSecond: packets / seconds,
    latencyP50Us: worst(REPLAY_STATUS.P50_US),
    latencyP99Us: worst(REPLAY_STATUS.P99_US),
    node: nodeCounters(pairs),
    gateway: sumCounters(pairs.map(({ counters }) => counters.gateway)),
    faults,
  }
}

/** Every worker reads and classifies the whole file, so those stages count once; from there on each has its share. */
function nodeCounters(pairs: Tally[]): StageCounters[] {
  const [first] = pairs
  const own = ({ counters }: Tally) => counters.node.filter(({ name }) => !WHOLE.has(name))
  return [...first.counters.node.filter(({ name }) => WHOLE.has(name)), ...sumCounters(pairs.map(own))]
}
