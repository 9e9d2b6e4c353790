// One tcpdump-like line for any bytes. For people: allocates, but never throws and never reads outside.

/** Which UDP ports carry tunnels, besides the assigned ones. */
export interface ShowOptions {
  geneve?: readonly number[]
  vxlan?: readonly number[]
}

/** One line for the Ethernet frame [at, end). */
export function show(b: Uint8Array, at = 0, end = b.length, _options: ShowOptions = {}): string {
  return `${end - at} bytes`
}

/** One line for the IPv4 or IPv6 packet [at, end). */
export function showPacket(b: Uint8Array, at = 0, end = b.length, _options: ShowOptions = {}): string {
  return `${end - at} bytes`
}
