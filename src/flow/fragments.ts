// Ports of fragmented datagrams: what the first fragment said, for the fragments that follow it.

/** A bounded cache, (source, destination, protocol, identification) to the ports word of the first fragment. One thread. */
export class FragmentTable {
  /** Milliseconds of any clock; whoever owns the table sets it once a breath. */
  now = 0
}
