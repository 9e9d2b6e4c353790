// Prefix maps that the gates look addresses up in: those of protected pods, one map a node, and those of each pod itself.

import ipaddr from 'ipaddr.js'
import { OWN, PREFIX_KEY } from '../control/gate.ts'
import { clearMap, createPrefixMap, deleteFromMap, makePinDirectory, pinnedMap, updateMap } from '../os/bpf.ts'

/** Addresses and prefixes of one pod, at most. */
const OWN_ENTRIES = 256

/** Makes the map of protected pods' addresses, one a node; the caller closes it. */
export function createProtectedMap(entries = 65_536): number {
  return createPrefixMap('dt_protected', PREFIX_KEY, 1, entries)
}

/** Opens that of a node which is pinned in a directory, without what a dead process has left in it, or makes one; the caller closes it. Throws DetourError. */
export function openProtectedMap(directory: string): number {
  makePinDirectory(directory)
  const map = pinnedMap(`${directory}/protected`, 1, createProtectedMap)
  clearMap(map, PREFIX_KEY)
  return map
}

/** Makes the map of one pod's own addresses; the caller closes it. */
export function createOwnMap(): number {
  return createPrefixMap('dt_own', PREFIX_KEY, 1, OWN_ENTRIES)
}

/** Puts addresses and prefixes into the map of protected pods. Throws DetourError when it is full. */
export function protect(map: number, prefixes: readonly string[]): void {
  for (const prefix of prefixes) updateMap(map, keyOf(prefix), Uint8Array.of(1))
}

export function unprotect(map: number, prefixes: readonly string[]): void {
  for (const prefix of prefixes) deleteFromMap(map, keyOf(prefix))
}

/** Whose a pod's addresses are: `address/length` with the part of it that is on the link, and prefixes that the pod may send from, too. */
export interface Own {
  networks: readonly string[]
  prefixes: readonly string[]
}

/** Makes a pod's map of own addresses say this, where it said that. Throws DetourError when it is full. */
export function setOwn(map: number, own: Own, before: Own = { networks: [], prefixes: [] }): void {
  const entries = ownEntries(own)
  for (const [key, value] of entries) updateMap(map, bytesOf(key), Uint8Array.of(value))
  for (const [key] of ownEntries(before)) if (!entries.has(key)) deleteFromMap(map, bytesOf(key))
}

function ownEntries({ networks, prefixes }: Own): Map<string, number> {
  const given: [Uint8Array, number][] = [
    ...networks.map((network): [Uint8Array, number] => [keyOf(network.replace(/\/.*/, '')), OWN.SOURCE | OWN.ON_LINK]),
    ...networks.map((network): [Uint8Array, number] => [keyOf(network), OWN.ON_LINK]),
    ...prefixes.map((prefix): [Uint8Array, number] => [keyOf(prefix), OWN.SOURCE]),
  ]
  // Only the longest prefix is found, so it has the bits of all that it lies in.
  return new Map(
    given.map(([key]) => [
      String(key),
      given.reduce((bits, [other, value]) => (isWithin(key, other) ? bits | value : bits), 0),
    ]),
  )
}

function isWithin(key: Uint8Array, other: Uint8Array): boolean {
  if (other[0] > key[0]) return false
  for (let bit = 0; bit < other[0]; bit++) {
    const at = 4 + (bit >> 3)
    if (((key[at] ^ other[at]) & (0x80 >> (bit & 7))) !== 0) return false
  }
  return true
}

const bytesOf = (key: string) => Uint8Array.from(key.split(','), Number)

/** The key of an address or prefix: IPv4 as IPv4-mapped (RFC 4291 section 2.5.5.2), what is behind the prefix 0. */
function keyOf(prefix: string): Uint8Array {
  const [address, length] = prefix.split('/')
  const parsed = ipaddr.parse(address)
  const mapped = parsed instanceof ipaddr.IPv4 ? parsed.toIPv4MappedAddress() : parsed
  const bits = length === undefined ? 128 : Number(length) + (parsed instanceof ipaddr.IPv4 ? 96 : 0)
  const bytes = mapped.toByteArray().map((byte, i) => byte & (0xff00 >> Math.max(0, Math.min(8, bits - 8 * i))) & 0xff)
  return Uint8Array.of(bits, 0, 0, 0, ...bytes)
}
