// The one list of drop reasons: a number per stopped packet, counted by (stage, reason), never thrown.

const REASONS = {
  NONE: 'not dropped',

  // wire: what a header check found
  ETHERNET_TRUNCATED: 'the frame is shorter than an Ethernet header',
  VLAN_TRUNCATED: 'an 802.1Q or 802.1ad tag is cut off',
  VLAN_TOO_DEEP: 'more than two VLAN tags are stacked',
  ARP_TRUNCATED: 'the ARP packet is cut off',
  ARP_MALFORMED: 'the ARP packet is not IPv4 over Ethernet',
  IPV4_TRUNCATED: 'the packet is shorter than its IPv4 header',
  IPV4_VERSION: 'the version field of an IPv4 packet is not 4',
  IPV4_HEADER_LENGTH: 'the IPv4 header length is under 20 or beyond the packet',
  IPV4_TOTAL_LENGTH: 'the IPv4 total length is under the header length or beyond the packet',
  IPV4_CHECKSUM: 'the IPv4 header checksum is wrong',
  IPV6_TRUNCATED: 'the packet is shorter than its IPv6 header',
  IPV6_VERSION: 'the version field of an IPv6 packet is not 6',
  IPV6_PAYLOAD_LENGTH: 'the IPv6 payload length is beyond the packet',
  IPV6_EXTENSION: 'an IPv6 extension header is cut off, repeated too often or out of place',
  UDP_TRUNCATED: 'the packet is shorter than its UDP header',
  UDP_LENGTH: 'the UDP length is under 8 or beyond the packet',
  UDP_CHECKSUM: 'the UDP checksum is not zero and wrong',
  UDP_ZERO_CHECKSUM: 'the UDP checksum over IPv6 is zero and the peer may not do that (RFC 6935)',
  TCP_TRUNCATED: 'the packet is shorter than its TCP header',
  TCP_HEADER_LENGTH: 'the TCP data offset is under 5 words or beyond the packet',
  ICMP_TRUNCATED: 'the ICMP message is cut off',
  GENEVE_TRUNCATED: 'the packet is shorter than its GENEVE header and options',
  GENEVE_VERSION: 'the GENEVE version is not 0',
  GENEVE_OPTIONS: 'the GENEVE option lengths do not add up to the options length',
  GENEVE_CRITICAL: 'a critical GENEVE option is not known here',
  GENEVE_CONTROL: 'a GENEVE control packet (O bit): its payload is never forwarded',
  GENEVE_PROTOCOL: 'the GENEVE protocol type is not one that the profile carries',
  VXLAN_TRUNCATED: 'the packet is shorter than its VXLAN header',
  VXLAN_FLAGS: 'the VXLAN I flag is not set',
  VXLAN_RESERVED: 'reserved VXLAN bits are set and strictReserved is on',

  // tunnel: what decapsulation refused
  NOT_TUNNEL: 'an underlay packet that is not UDP to the tunnel port',
  OUTER_FRAGMENT: 'an outer fragment: tunnel endpoints do not reassemble',
  UNKNOWN_PEER: 'the outer source or destination address is not one of this tunnel',
  UNKNOWN_VNI: 'the VNI is not one of this tunnel',
  INNER_VLAN: 'the inner frame carries a VLAN tag (RFC 7348 section 6.1)',
  ECN_CE_NOT_ECT: 'the underlay marked congestion on a packet whose inner header is not ECN-capable (RFC 6040)',

  // gate: what the kernel stopped at the pod's interface
  SPOOFED_MAC: 'the pod sent from a MAC address that is not its own, or past its gate to the workers',
  SPOOFED_ADDRESS: 'the pod sent from, or claimed, an IP address that is not its own, or hid it behind a VLAN tag',
  NO_WORKER: 'no worker was alive and the attachment fails closed',

  // classify, decide, restore
  NOT_IP: 'neither IPv4 nor IPv6',
  POLICY: 'a rule says drop',
  RESET: 'a rule says reset',
  FORBIDDEN: 'a policy forbids the request; answered with 403',
  STREAM_OVERLAP: 'a TCP segment says something else than what was seen of the same place in its stream',
  STREAM_FULL: 'a TCP segment is too far ahead of a gap, or of what was acknowledged, to be kept',
  STREAM_UNCLEAR: 'content that cannot be judged as its receiver may read it: a fragment, urgent data, data of a SYN',
  ENDPOINT_DOWN: 'the endpoint does not answer and the attachment fails closed',
  FLOW_TABLE_FULL: 'the flow table is full',
  FLOW_QUOTA: 'the attachment has as many flows as one may have',
  UNKNOWN_FLOW: 'a packet returned for a flow that was never sent out',
  UNKNOWN_ATTACHMENT: 'a packet returned for no attachment of this worker',
  FLOW_COOKIE: 'a packet returned without the cookie that its flow carries',
  RETURNED_TOO_BIG: 'a returned packet is larger than the profile allows',
  TOO_BIG: 'larger than the tunnel carries; answered with ICMP',
  TOO_BIG_SILENT: 'larger than the tunnel carries; ICMP may not answer this packet (RFC 1122 section 3.2.2)',

  // memory and devices
  NO_FRAME: 'no free frame in the pool',
  NEXT_HOP: 'the Ethernet address of the next hop toward the endpoint is not known',
  NO_HEADROOM: 'no room in front of the packet for the outer header',
  OVERSIZED: 'larger than a frame of the pool or than the device carries',
  RING_FULL: 'the ring to the next thread is full',
  DEVICE_ERROR: 'the device refused the packet',
  DEVICE_FULL: 'the device had no room for the packet',
  OFFLOAD: 'the offload fields contradict the packet',
  FAULT: 'dropped by a fault that was asked for',
  STOPPED: 'still in hand when the worker stopped',
} as const

/** The name of a drop reason. */
export type DropName = keyof typeof REASONS

/** A drop reason: 0 is NONE, so that a check can return it for "fine". */
export type DropReason = number

const names = Object.keys(REASONS) as DropName[]

/** Drop reasons by name; the numbers follow the order of the list and may change between versions. */
export const DROP = Object.freeze(Object.fromEntries(names.map((name, at) => [name, at]))) as Readonly<
  Record<DropName, DropReason>
>

/** How many reasons there are, NONE included. */
export const DROP_COUNT = names.length

/** The stable, printable name of a reason: `ipv4-truncated`. */
export function dropName(reason: DropReason): string {
  return (names[reason] ?? `reason ${reason}`).toLowerCase().replaceAll('_', '-')
}

/** The sentence that says what a reason means. */
export function dropText(reason: DropReason): string {
  const name = names[reason]
  return name === undefined ? 'not a reason of this version' : REASONS[name]
}
