// The next hop, against the headers that the kernel itself puts on packets that it sends there.

import { afterAll, afterEach, beforeAll, describe, expect, it } from 'vitest'
import { type Hop, Way } from '../../src/node/way.ts'
import { AF, addressOf, bind, close, interfaceIndex, must, POLL, poll, read, SOCK, socket } from '../../src/os/libc.ts'
import { inNamespace, ip, ipBatch } from '../../src/os/netns.ts'
import { HOST4, HOST6, missing, POD4, POD6, Probe, runIn, title, wire } from './support.ts'

const bytes4 = (address: string) => address.split('.').map(Number)
const bytes6 = (prefix: number, last: number) => [prefix >> 8, prefix & 255, ...Array(13).fill(0), last]
const MAC = '02:00:00:00:00:42'

describe.skipIf(missing !== '')(title('next hop'), () => {
  // The pod of `wire` plays the node, its eth0 the uplink; the host is the endpoint, or a router on the way to it.
  let wired: ReturnType<typeof wire>
  let way: Way
  let to: Uint8Array

  const open = (local: string | number[], remote: string | number[]) => {
    const bytes = (address: string | number[]) => (typeof address === 'string' ? bytes4(address) : address)
    way = new Way({ namespace: wired.pod, uplink: 'eth0', local: bytes(local) }, 1500)
    to = Uint8Array.from(bytes(remote))
    return way.to(to)
  }
  /** Looks again until it is so. */
  const until = (condition: (hop: Hop) => boolean): Hop => {
    for (const end = Date.now() + 10_000; ; ) {
      way.look()
      const hop = way.to(to)
      if (condition(hop)) return hop
      if (Date.now() > end) throw new Error('it never came to pass')
    }
  }
  const known = ({ addresses }: Hop) => addresses !== undefined
  /** The Ethernet addresses of the next UDP packet to arrive at the host, sent by the kernel. */
  const sent = (address: string) => {
    const fd = inNamespace(wired.host, () => must(socket(AF.PACKET, SOCK.RAW, 0x0300), 'socket', 'packet'))
    const index = inNamespace(wired.host, () => interfaceIndex('veth0'))
    const at = new DataView(new ArrayBuffer(20))
    at.setUint16(0, AF.PACKET, true)
    at.setUint16(2, 3)
    at.setInt32(4, index, true)
    must(bind(fd, at), 'bind', 'veth0')
    const probe = new Probe(wired.pod, undefined, address, 4789)
    const frame = Buffer.alloc(2048)
    const type = address.includes(':') ? 0x86dd : 0x0800
    try {
      for (let tries = 0; tries < 500; tries++) {
        probe.send()
        const waiting = Int32Array.of(fd, POLL.IN)
        while (poll(addressOf(waiting), 1, 20) > 0) {
          read(fd, addressOf(frame), frame.length)
          const udp = type === 0x0800 ? frame[23] : frame[20]
          if (frame.readUInt16BE(12) === type && udp === 17) return [...frame.subarray(0, 12)]
        }
      }
    } finally {
      probe.close()
      close(fd)
    }
    throw new Error('no packet came')
  }

  beforeAll(() => {
    wired = wire('dth-hop')
    ipBatch(['route add 10.98.0.0/24 via 10.91.0.2 mtu 1400', 'route add fd98::/64 via fd91::2 mtu 1380'], wired.pod)
    // Neighbour discovery for IPv4 packets speaks from a link-local address (ndisc_solicit in net/ipv6/ndisc.c).
    ipBatch(['address add fe80::1/64 dev eth0 nodad', 'route add 10.89.0.0/24 via inet6 fd91::2 dev eth0'], wired.pod)
  })
  afterEach(() => {
    way.close()
    ip(['link', 'set', 'eth0', 'mtu', '1500', 'up'], wired.pod)
    ip(['neigh', 'flush', 'all'], wired.pod)
  })
  afterAll(() => wired.remove())

  const ways: [string, string | number[], string | number[], string, number][] = [
    ['on the link, IPv4', POD4, HOST4, HOST4, 1500],
    ['on the link, IPv6', bytes6(0xfd91, 1), bytes6(0xfd91, 2), HOST6, 1500],
    ['by a gateway, IPv4', POD4, '10.98.0.9', '10.98.0.9', 1400],
    ['by a gateway, IPv6', bytes6(0xfd91, 1), bytes6(0xfd98, 9), 'fd98::9', 1380],
    ['by an IPv6 gateway, IPv4', POD4, '10.89.0.9', '10.89.0.9', 1500],
  ]
  for (const [name, local, remote, address, mtu] of ways) {
    it(`is what the kernel uses: ${name}`, () => {
      expect(open(local, remote)).toEqual({ addresses: undefined, mtu })
      const kernel = sent(address)
      expect(until(known)).toEqual({ addresses: Uint8Array.from(kernel), mtu })
    })
  }

  it('follows a neighbour that changes its address', async () => {
    open(POD4, HOST4)
    sent(HOST4)
    const before = until(known).addresses
    await runIn(wired.host, 'ip', 'link', 'set', 'veth0', 'address', MAC)
    // What another machine on the link would hear of a failover: a gratuitous reply.
    ip(['neigh', 'replace', HOST4, 'lladdr', MAC, 'dev', 'eth0', 'nud', 'reachable'], wired.pod)
    const { addresses = [] } = until(hop => `${hop.addresses}` !== `${before}`)
    expect([...addresses]).toEqual(sent(HOST4))
  })

  it('is not to be used while the neighbour does not answer, the link is down or gone, or the address is not ours', () => {
    open(POD4, HOST4)
    const settle = (usable: boolean) => until(hop => known(hop) === usable)
    sent(HOST4)
    settle(true)
    ip(['neigh', 'replace', HOST4, 'dev', 'eth0', 'nud', 'failed'], wired.pod)
    settle(false)
    sent(HOST4)
    settle(true)
    ip(['address', 'del', `${POD4}/24`, 'dev', 'eth0'], wired.pod)
    settle(false)
    ip(['address', 'add', `${POD4}/24`, 'dev', 'eth0'], wired.pod)
    sent(HOST4)
    settle(true)
    ip(['link', 'set', 'eth0', 'down'], wired.pod)
    expect(settle(false).mtu).toBe(1500)
  })

  it("follows the uplink's MTU, its address, and a new uplink of the old name", () => {
    open(POD4, HOST4)
    sent(HOST4)
    until(known)
    ip(['link', 'set', 'eth0', 'mtu', '1450'], wired.pod)
    until(hop => known(hop) && hop.mtu === 1450)
    ip(['link', 'set', 'eth0', 'address', '02:00:00:00:00:55'], wired.pod)
    sent(HOST4)
    until(({ addresses = [] }) => `${addresses.slice(6)}` === '2,0,0,0,0,85')

    ip(['link', 'delete', 'eth0'], wired.pod)
    expect(until(hop => !known(hop)).mtu).toBe(1450)
    ipBatch([`link add eth0 netns ${wired.pod} mtu 1480 type veth peer name veth0 netns ${wired.host}`])
    ipBatch([`address add ${POD4}/24 dev eth0`, `address add ${POD6}/64 dev eth0 nodad`, 'link set eth0 up'], wired.pod)
    ipBatch([`address add ${HOST4}/24 dev veth0`, 'link set veth0 up'], wired.host)
    const kernel = sent(HOST4)
    expect(until(known)).toEqual({ addresses: Uint8Array.from(kernel), mtu: 1480 })
  })
})
