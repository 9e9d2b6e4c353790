// A raw socket that hears which packets were too big for some link on their way (icmp(7), icmpv6(7), linux/icmp.h): ICMP
// "fragmentation needed", ICMPv6 "packet too big". Needs CAP_NET_RAW.

import { AF, addressOf, close, read, SOCK, setsockopt, socket } from './libc.ts'
import { inNamespace } from './netns.ts'

const IPPROTO_ICMP = 1
const IPPROTO_ICMPV6 = 58
const SOL_RAW = 255
const SOL_ICMPV6 = 58
const FILTER = 1
/** Both are bits of types that are not wanted. */
const UNREACHABLE_ONLY = ~(1 << 3)
const TOO_BIG_ONLY = Uint32Array.of(~(1 << 2), -1, -1, -1, -1, -1, -1, -1)

/** Enough for all that an error quotes. */
const BUFFER = 2048

export class IcmpErrors {
  /** What `next` read: of IPv4 the IP packet, of IPv6 the ICMPv6 message. */
  readonly bytes = new Uint8Array(BUFFER)
  private readonly fd: number
  private readonly at = addressOf(this.bytes)

  /** Opens it in a namespace; without the right to, it hears nothing. */
  constructor(namespace: string, version: 4 | 6) {
    const four = version === 4
    const [family, protocol] = four ? [AF.INET, IPPROTO_ICMP] : [AF.INET6, IPPROTO_ICMPV6]
    this.fd = inNamespace(namespace, () => socket(family, SOCK.RAW | SOCK.NONBLOCK, protocol))
    if (this.fd < 0) return
    setsockopt(this.fd, four ? SOL_RAW : SOL_ICMPV6, FILTER, four ? UNREACHABLE_ONLY : TOO_BIG_ONLY)
  }

  /** Reads the next message into `bytes` and returns its size; 0 when there is none. */
  next(): number {
    return this.fd < 0 ? 0 : Math.max(0, read(this.fd, this.at, BUFFER))
  }

  close(): void {
    if (this.fd >= 0) close(this.fd)
  }
}
