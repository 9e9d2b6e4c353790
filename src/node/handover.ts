// What a node process hands to its successor: a description, and the descriptors that it speaks of. In what is sent, whatever is called
// `fd` or `fds`, or ends so, is a descriptor: beside it go the open files themselves.

import type { UnderlayParts } from '../control/underlay.ts'
import type { UplinkParts } from '../control/uplink.ts'
import type { SharedFlowTable } from '../flow/live.ts'
import type { UdpHandle } from '../os/udp.ts'
import type { PodChange, PodParts } from './pods.ts'

/** What a node has open; plain data and descriptors, which belong to whoever has this. */
export interface Inheritance {
  /** What must be the same in both processes. */
  place: Place
  /** Seeds of the hash that shares packets out, and of that which finds flows. */
  steeringSeed: number[]
  seed: number[]
  underlay: UnderlayParts
  /** Where the underlay is sockets, one a worker. */
  sockets: UdpHandle[]
  /** One a worker. */
  flows: SharedFlowTable[]
  /** Number of each endpoint that flows name, by address. */
  endpoints: [address: string, number: number][]
  protectedFd: number
  pods: PodParts[]
}

export interface Place {
  /** Of the inheritance's form. */
  version: number
  workers: number
  namespace: number
  uplink: string
  profile: string
  local: string
  port: number
  rung: string
}

/** Changes with the form of an inheritance and of what lies in its memory. */
export const INHERITANCE_VERSION = 1

/** What happened since. */
export type Change = PodChange | { uplink: UplinkParts }

/** Names what differs between two places; '' when nothing does. */
export function difference(mine: Place, theirs: Place): string {
  const keys = Object.keys(mine) as (keyof Place)[]
  return keys.filter(key => mine[key] !== theirs[key]).join(', ')
}

const DESCRIPTOR = /(^fds?|Fds?)$/

/** As text, with the descriptors that it speaks of in order. */
export function pack(value: unknown): { text: string; fds: number[] } {
  const fds: number[] = []
  const place = (fd: number) => (fd < 0 ? fd : fds.push(fd) - 1)
  const text = JSON.stringify(value, (key, inner) => {
    if (!DESCRIPTOR.test(key)) return inner
    return Array.isArray(inner) ? { list: inner.map(place) } : { one: place(inner) }
  })
  return { text, fds }
}

/** What was packed, with this process's descriptors. Throws SyntaxError. */
export function unpack(text: string, fds: readonly number[]): unknown {
  const find = (place: number) => (place < 0 ? place : fds[place])
  return JSON.parse(text, (key, inner) => {
    if (!DESCRIPTOR.test(key)) return inner
    return 'list' in inner ? inner.list.map(find) : find(inner.one)
  })
}
