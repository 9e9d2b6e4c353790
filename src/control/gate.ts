// The BPF programs of interception: gates on a pod's interface, the way back from the TAP beside it, and a seal on that.
//
// NB: what a packet is says the packet. `skb->protocol` of a packet that leaves is whatever a raw socket was told (packet(7)), and the
// other side of the veth does not look at it.

import { Assembler, HELPER, R0, R1, R2, R6, R7, R8, R9, R10, SKB, VERDICT } from '../os/assembler.ts'
import { HEARTBEAT_SHIFT } from '../os/clock.ts'
import { HEARTBEAT } from '../os/heartbeat.ts'
import { ETHERNET, IPV4, IPV6, loadBytes, redirect } from './programs.ts'

// As a little-endian processor reads them.
const ARP = 0x0608
const TAG = 0x0081
const SERVICE_TAG = 0xa888

const ICMPV6 = 58
/** ICMPv6 types of neighbour discovery (RFC 4861 section 4), from the first to the last. */
const DISCOVERY = { FIRST: 133, ROUTER_ADVERTISEMENT: 134, NEIGHBOUR_ADVERTISEMENT: 136, REDIRECT: 137 } as const

/** Mark of a frame on its way back into the pod, only between the TAP and the pod's interface. A veth scrubs marks, so none can come from outside. */
const MARK = 0x0de70000

/** `skb->tc_index` of what a gate gives to the TAP, and of what leaves by the pod's interface: no socket can set it. */
const SEAL = 0xde70
const LEAVING = 0xde71

// The worker reads the clock a little apart from the kernel: a heartbeat from the near future is alive, too.
const SLACK = 8

const BPF_F_INGRESS = 1

/** Changes with what the gates do or find in their maps: gates of another version must be replaced. */
export const GATE_VERSION = 4

/** Bits of a value in the map of own addresses: the pod may send from it; it is on the pod's link. */
export const OWN = { SOURCE: 1, ON_LINK: 2 } as const

/** Bytes of a prefix map's key: the length in bits, an IPv6 or IPv4-mapped address. */
export const PREFIX_KEY = 20

/** What a gate needs to know. */
export interface Gate {
  /** The leg: packets leaving the pod, or arriving at it. */
  hook: 'egress' | 'ingress'
  tapIndex: number
  heartbeatMap: number
  /** How many workers beat. */
  workers: number
  /** Prefix map of addresses that belong to protected pods: what they send was inspected where it left. */
  protectedMap: number
  /** Prefix map of the pod's own addresses (OWN bits). */
  ownMap: number
  /** The interface's address, where the pod may send from none but its own addresses; undefined trusts it. */
  mac: Uint8Array | undefined
}

// The stack: Ethernet header, IP header or ARP packet, a key of the heartbeat map, one of a prefix map.
const MAC = -96
const SENDER_MAC = MAC + 6
const TYPE = MAC + 12
const IP = -80
const SOURCE4 = IP + 12
const DESTINATION4 = IP + 16
const SOURCE6 = IP + 8
const DESTINATION6 = IP + 24
const ICMP_TYPE = IP + 40
const BEAT_KEY = -24
const KEY = -20
const KEY_ADDRESS = -16

/**
 * Decides on the pod's interface which packets go to the TAP: IP and what is VLAN-tagged, unless they come from there, are neighbour discovery
 * of the link, come from a protected pod, or a worker is dead. What a pod sends in the name of others is dropped.
 */
export function gate(options: Gate): Uint8Array {
  const { hook, tapIndex, heartbeatMap, protectedMap, mac } = options
  const leaving = hook === 'egress'
  const a = new Assembler().move(R6, R1)

  // What the worker sent is not steered again. Leaving, the TAP is the interface it came in by, and sealed: a process in the pod
  // could feign a mark (SO_MARK), and, with CAP_NET_ADMIN, an interface of that number. Arriving, it is marked.
  if (leaving) {
    a.load(4, R2, R6, SKB.INGRESS_IFINDEX).when(R2, '!=', tapIndex, 'foreign')
    a.load(4, R2, R6, SKB.TC_INDEX).when(R2, '==', LEAVING, 'next').label('foreign')
  } else {
    a.load(4, R2, R6, SKB.MARK).when32(R2, '!=', MARK, 'foreign')
    a.set(R2, 0).store(4, R6, SKB.MARK, R2).exit(VERDICT.NEXT)
    a.label('foreign')
  }
  a.storeImmediate(4, R10, BEAT_KEY, 0)
  a.map(R1, heartbeatMap).move(R2, R10).add(R2, BEAT_KEY).call(HELPER.MAP_LOOKUP).when(R0, '==', 0, 'next')
  a.move(R7, R0).load(4, R1, R7, HEARTBEAT.ENABLED).when(R1, '==', 0, 'next')

  loadBytes(a, 0, MAC, ETHERNET).when(R0, '!=', 0, 'live?')
  if (leaving && mac !== undefined) unlessMac(a, SENDER_MAC, mac, 'spoofed mac')
  a.load(2, R2, R10, TYPE).when(R2, '==', IPV4, 'ipv4').when(R2, '==', IPV6, 'ipv6')
  const tagged = leaving && mac !== undefined ? 'spoofed address' : 'live?'
  a.when(R2, '==', TAG, tagged).when(R2, '==', SERVICE_TAG, tagged)
  if (leaving && mac !== undefined) arp(a, options, mac)
  a.jump('link')

  a.label('ipv4')
  loadBytes(a, ETHERNET, IP, 20).when(R0, '!=', 0, 'live?')
  if (leaving) ownSource4(a, options)
  else {
    key4(a, SOURCE4)
    find(a, protectedMap).when(R0, '!=', 0, 'inspected')
  }
  a.jump('live?')

  a.label('ipv6')
  loadBytes(a, ETHERNET, IP, 40).when(R0, '!=', 0, 'live?')
  if (leaving) ownSource6(a, options)
  discovery(a, options)
  if (!leaving) {
    key6(a, SOURCE6, 'live?')
    find(a, protectedMap).when(R0, '!=', 0, 'inspected')
  }

  a.label('live?')
  ifAlive(a, options)
  a.set(R1, 1).atomicAdd(R7, HEARTBEAT.REDIRECTED, R1).set(R2, SEAL).store(4, R6, SKB.TC_INDEX, R2)
  redirect(a, tapIndex, 0)

  a.label('link').set(R1, 1).atomicAdd(R7, HEARTBEAT.LINK, R1).exit(VERDICT.NEXT)
  if (!leaving) a.label('inspected').set(R1, 1).atomicAdd(R7, HEARTBEAT.INSPECTED, R1).exit(VERDICT.NEXT)

  a.label('dead').set(R1, 1).load(4, R2, R7, HEARTBEAT.FAIL).when(R2, '!=', 0, 'closed')
  a.atomicAdd(R7, HEARTBEAT.PASSED, R1)
  a.label('next').exit(VERDICT.NEXT)
  a.label('closed').atomicAdd(R7, HEARTBEAT.DROPPED, R1).exit(VERDICT.DROP)
  if (!leaving || mac === undefined) return a.assemble()
  a.label('spoofed mac').set(R1, 1).atomicAdd(R7, HEARTBEAT.SPOOFED_MAC, R1).exit(VERDICT.DROP)
  a.label('spoofed address').set(R1, 1).atomicAdd(R7, HEARTBEAT.SPOOFED_ADDRESS, R1).exit(VERDICT.DROP)
  return a.assemble()
}

/** Takes what the worker writes to the TAP to the pod's interface: out of it when the source MAC is the interface's own, else into it. */
export function back(interfaceIndex: number, mac: Uint8Array): Uint8Array {
  const a = new Assembler().move(R6, R1)
  loadBytes(a, 0, MAC, ETHERNET).when(R0, '!=', 0, 'drop')
  unlessMac(a, SENDER_MAC, mac, 'arriving')
  a.set(R2, LEAVING).store(4, R6, SKB.TC_INDEX, R2)
  redirect(a, interfaceIndex, 0)
  a.label('arriving').set(R2, MARK).store(4, R6, SKB.MARK, R2)
  redirect(a, interfaceIndex, BPF_F_INGRESS)
  return a.label('drop').exit(VERDICT.DROP).assemble()
}

/** Lets only what the gates have redirected go out by the TAP, to the workers: a raw socket in the pod could send by it, too, past the gates. */
export function seal(heartbeatMap: number): Uint8Array {
  const a = new Assembler().load(4, R2, R1, SKB.TC_INDEX).when(R2, '==', SEAL, 'sealed')
  a.storeImmediate(4, R10, BEAT_KEY, 0)
  a.map(R1, heartbeatMap).move(R2, R10).add(R2, BEAT_KEY).call(HELPER.MAP_LOOKUP).when(R0, '==', 0, 'drop')
  a.set(R1, 1).atomicAdd(R0, HEARTBEAT.SPOOFED_MAC, R1)
  a.label('drop').exit(VERDICT.DROP)
  return a.label('sealed').exit(VERDICT.NEXT).assemble()
}

/** Goes to 'dead' when a worker has been silent for too long. */
function ifAlive(a: Assembler, { workers }: Gate): void {
  a.call(HELPER.KTIME_GET_NS).shiftRight(R0, HEARTBEAT_SHIFT).move(R8, R0)
  a.load(4, R9, R7, HEARTBEAT.LIMIT).add32(R9, SLACK)
  for (let i = 0; i < workers; i++) {
    a.load(4, R1, R7, HEARTBEAT.BEATS + 4 * i).move(R0, R8)
    a.subtract32(R0, R1).add32(R0, SLACK).whenRegister(R0, '>', R9, 'dead')
  }
}

/** Lets ARP pass that speaks for the pod alone, or for nobody yet (RFC 5227 section 2.1.1). */
function arp(a: Assembler, gate: Gate, mac: Uint8Array): void {
  a.when(R2, '!=', ARP, 'link')
  loadBytes(a, ETHERNET, IP, 28).when(R0, '!=', 0, 'spoofed address')
  const sender = IP + 8
  const view = new DataView(mac.buffer, mac.byteOffset, 6)
  a.load(4, R2, R10, sender).when32(R2, '!=', view.getInt32(0, true), 'spoofed mac')
  a.load(2, R2, R10, sender + 4).when(R2, '!=', view.getUint16(4, true), 'spoofed mac')
  // Four bytes that are not aligned to four.
  a.load(2, R2, R10, sender + 6).load(2, R1, R10, sender + 8)
  a.store(2, R10, SOURCE4, R2).store(2, R10, SOURCE4 + 2, R1)
  a.load(4, R2, R10, SOURCE4).when(R2, '==', 0, 'link')
  key4(a, SOURCE4)
  unlessOwn(a, gate, OWN.SOURCE, 'spoofed address')
}

/** Goes to 'spoofed address' unless the source is the pod's; 0.0.0.0 may speak to groups: DHCP and IGMP. */
function ownSource4(a: Assembler, gate: Gate): void {
  if (gate.mac === undefined) return
  a.load(4, R2, R10, SOURCE4).when(R2, '!=', 0, 'source4')
  a.load(1, R2, R10, DESTINATION4).when(R2, '>=', 224, 'live?').jump('spoofed address')
  a.label('source4')
  key4(a, SOURCE4)
  unlessOwn(a, gate, OWN.SOURCE, 'spoofed address')
}

/** The same; :: may speak to groups: duplicate address detection and MLD. */
function ownSource6(a: Assembler, gate: Gate): void {
  if (gate.mac === undefined) return
  key6(a, SOURCE6, 'spoofed address')
  a.load(8, R2, R10, SOURCE6)
    .load(8, R1, R10, SOURCE6 + 8)
    .or(R2, R1)
    .when(R2, '!=', 0, 'source6')
  a.load(1, R2, R10, DESTINATION6).when(R2, '==', 0xff, 'source').jump('spoofed address')
  a.label('source6')
  unlessOwn(a, gate, OWN.SOURCE, 'spoofed address')
  a.label('source')
}

/**
 * Goes to 'link' with neighbour discovery, which no router has forwarded (hop limit 255, RFC 4861 section 3.1), nor will: a pod sends it to its
 * link alone, and neither speaks for others nor as a router.
 */
function discovery(a: Assembler, gate: Gate): void {
  a.load(1, R2, R10, IP + 6).when(R2, '!=', ICMPV6, 'not discovery')
  a.load(1, R2, R10, IP + 7).when(R2, '!=', 255, 'not discovery')
  loadBytes(a, ETHERNET + 40, ICMP_TYPE, 1).when(R0, '!=', 0, 'not discovery')
  a.load(1, R2, R10, ICMP_TYPE)
    .when(R2, '<', DISCOVERY.FIRST, 'not discovery')
    .when(R2, '>', DISCOVERY.REDIRECT, 'not discovery')
  if (gate.hook === 'egress') {
    if (gate.mac !== undefined) {
      a.when(R2, '==', DISCOVERY.ROUTER_ADVERTISEMENT, 'spoofed address').when(
        R2,
        '==',
        DISCOVERY.REDIRECT,
        'spoofed address',
      )
      a.when(R2, '!=', DISCOVERY.NEIGHBOUR_ADVERTISEMENT, 'to whom')
      loadBytes(a, ETHERNET + 48, KEY_ADDRESS, 16).when(R0, '!=', 0, 'spoofed address')
      unlessOwn(a, gate, OWN.SOURCE, 'spoofed address')
      a.label('to whom')
    }
    // Link-local: ff.2::/16 and fe80::/10.
    a.load(2, R2, R10, DESTINATION6).and(R2, 0x0fff).when(R2, '==', 0x02ff, 'link')
    a.load(2, R2, R10, DESTINATION6).and(R2, 0xc0ff).when(R2, '==', 0x80fe, 'link')
    key6(a, DESTINATION6, 'not discovery')
    unlessOwn(a, gate, OWN.ON_LINK, 'not discovery')
  }
  a.jump('link').label('not discovery')
}

/** Goes to the label when the address in the key is not the pod's in this respect. */
function unlessOwn(a: Assembler, { ownMap }: Gate, bit: number, label: string): void {
  find(a, ownMap).when(R0, '==', 0, label)
  a.load(1, R2, R0, 0).and(R2, bit).when(R2, '==', 0, label)
}

/** Goes to the label when the six bytes at `at` of the stack, at an even place not divisible by four, are another MAC address. */
function unlessMac(a: Assembler, at: number, mac: Uint8Array, label: string): void {
  const view = new DataView(mac.buffer, mac.byteOffset, 6)
  a.load(2, R2, R10, at).when(R2, '!=', view.getUint16(0, true), label)
  a.load(4, R2, R10, at + 2).when32(R2, '!=', view.getInt32(2, true), label)
}

function key4(a: Assembler, at: number): void {
  a.storeImmediate(8, R10, KEY_ADDRESS, 0).storeImmediate(4, R10, KEY_ADDRESS + 8, 0xffff_0000 | 0)
  a.load(4, R2, R10, at).store(4, R10, KEY_ADDRESS + 12, R2)
}

/** Goes to the label with an IPv4-mapped address, which is on no wire (RFC 4291 section 2.5.5.2): in the maps it means IPv4. */
function key6(a: Assembler, at: number, label: string): void {
  const plain = `plain ${at}`
  a.load(8, R2, R10, at).store(8, R10, KEY_ADDRESS, R2).when(R2, '!=', 0, plain)
  a.load(4, R2, R10, at + 8).when32(R2, '==', 0xffff_0000 | 0, label)
  a.label(plain)
    .load(8, R2, R10, at + 8)
    .store(8, R10, KEY_ADDRESS + 8, R2)
}

/** R0 = where the value of the longest prefix of the address in the key is, or 0. */
function find(a: Assembler, map: number): Assembler {
  a.storeImmediate(4, R10, KEY, 128)
  return a.map(R1, map).move(R2, R10).add(R2, KEY).call(HELPER.MAP_LOOKUP)
}
