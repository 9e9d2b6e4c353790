// The flow table.
export interface FlowTableOptions {
  /** The most flows at a time, up to 2^20. */
  capacity: number
  /** How long a TCP flow may be idle; 350 s unless told otherwise. */
  tcpIdleMs?: number
  /** How long any other flow may be idle; 120 s unless told otherwise. */
  idleMs?: number
  /** How long a TCP flow lives on after RST, or after FIN from both ends; 10 s unless told otherwise. */
  lingerMs?: number
}

/** What another thread needs to read the same table; passes through workerData. */
export interface FlowTableHandle extends Required<FlowTableOptions> {
  memory: SharedArrayBuffer
}

/** Allocates the shared memory of a table; pages are committed when flows first use them. Throws RangeError. */
export function createFlowTable(options: FlowTableOptions): FlowTableHandle

/** The writer's view: one thread finds, inserts and removes. Rows are numbers, valid until the flow ends. */
export declare class FlowTable {
  constructor(handle: FlowTableHandle)
  /** Called for each flow that ends, while its row can still be read; may not insert or remove. */
  onEnd: ((row: number) => void) | undefined
  /** The clock, ms: set it once a breath (or once a packet), so that no double is passed per call. */
  set now(ms: number)
  get count(): number
  /** The row of a key, or -1. `keys` is pool.key, `at` frame * KEY_WORDS. */
  find(keys: Int32Array, at: number, hash: number): number
  /** Adds a flow that `find` did not find; its verdict and words are 0. Returns its row, or -1 when the table is full. */
  insert(keys: Int32Array, at: number, hash: number): number
  /** Accounts a packet (or a super-packet: `packets` segments). */
  touch(row: number, reversed: number, packets: number, bytes: number): void
  /** Notes TCP flags (the header's 13th byte) of a packet, so that finished connections leave early. */
  tcpFlags(row: number, reversed: number, flags: number): void
  remove(row: number): void
  /** Looks at up to `budget` rows from where it stopped, ends those that were idle too long, and returns how many. */
  expire(budget: number): number
  verdict(row: number): number
  setVerdict(row: number, verdict: number): void
  cookie(row: number): number
  setCookie(row: number, cookie: number): void
  /** Index of the endpoint that the flow goes to. */
  endpoint(row: number): number
  setEndpoint(row: number, endpoint: number): void
  /** Index of the rule that decided, -1 for the default. */
  rule(row: number): number
  setRule(row: number, rule: number): void
  /** A word for whoever owns the table. */
  state(row: number): number
  setState(row: number, state: number): void
  packets(row: number, reversed: number): number
  bytes(row: number, reversed: number): number
}

/** A flow as people see it. A is the smaller end; `opener` says which end sent the first packet. */
export interface FlowRecord {
  row: number
  attachment: number
  protocol: number
  a: string
  portA: number
  b: string
  portB: number
  opener: 'a' | 'b'
  verdict: number
  rule: number
  endpoint: number
  cookie: number
  state: number
  firstSeenMs: number
  lastSeenMs: number
  packetsAB: number
  bytesAB: number
  packetsBA: number
  bytesBA: number
}
