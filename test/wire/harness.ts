// The five tests that every header has, and the bytes of the fixtures.

import { readFileSync } from 'node:fs'
import { describe, expect, it } from 'vitest'
import { DROP, type DropName, dropName } from '../../src/drop.ts'

/** A frame that scapy built, and what tshark and tcpdump saw in it. */
export interface Fixture {
  name: string
  hex: string
  tcpdump: string
  tshark: Record<string, string[]>
}

export const FIXTURES: Fixture[] = JSON.parse(
  readFileSync(new URL('../../fixtures/wire/packets.json', import.meta.url), 'utf8'),
)

/** The bytes of a fixture, in shared memory as packets are. */
export function fixture(name: string): Uint8Array {
  const found = FIXTURES.find(packet => packet.name === name)
  if (found === undefined) throw new Error(`no fixture '${name}'`)
  return shared(found.hex)
}

/** Bytes written as hexadecimal digits and spaces, with `before` and `after` bytes of `fill` around them. */
export function shared(hex: string, before = 0, after = 0, fill = 0xee): Uint8Array {
  const bytes = Buffer.from(hex.replaceAll(/\s/g, ''), 'hex')
  const b = new Uint8Array(new SharedArrayBuffer(before + bytes.length + after)).fill(fill)
  b.set(bytes, before)
  return b
}

export function toHex(b: Uint8Array): string {
  return Buffer.from(b).toString('hex')
}

/** A reading of one field, and the value that it should give. */
export type Reading = [read: (b: Uint8Array, at: number) => unknown, value: unknown]

interface Written {
  write: (b: Uint8Array, at: number) => void
  fields: Record<string, Reading>
}

export interface HeaderCase extends Written {
  /** A header by hand, and as much behind it as its check wants to be there. */
  known: string
  check: (b: Uint8Array, at: number, end: number) => number
  /** What the check says of known bytes that are cut off. */
  truncated: DropName[]
  /** The largest header there can be, `size` bytes. */
  maximum: Written & { size: number }
}

// An odd position, because headers are where they are.
const AT = 7

export function fiveTests(name: string, header: HeaderCase): void {
  const { known, check, fields, write, truncated, maximum } = header
  const b = shared(known, AT, 9)
  const size = b.length - AT - 9

  describe(name, () => {
    it('takes known bytes apart', () => {
      expect(dropName(check(b, AT, AT + size))).toBe('none')
      expect(read(b, fields)).toEqual(values(fields))
    })

    it('builds the same bytes over a used buffer, and none beside them', () => {
      const built = shared('', AT, size + 9, 0xa5)
      write(built, AT)
      expect(toHex(built.subarray(AT, AT + size))).toBe(toHex(b.subarray(AT, AT + size)))
      expect(toHex(built.subarray(0, AT)) + toHex(built.subarray(AT + size))).toBe('a5'.repeat(AT + 9))
    })

    it('refuses every truncation', () => {
      const reasons = new Set<number>()
      for (let length = 0; length < size; length++) reasons.add(check(b, AT, AT + length))
      expect([...reasons].map(dropName).sort()).toEqual(truncated.map(reason => dropName(DROP[reason])).sort())
    })

    it('carries the largest values there and back', () => {
      const largest = shared('', AT, maximum.size + 9, 0xa5)
      maximum.write(largest, AT)
      expect(dropName(check(largest, AT, AT + maximum.size))).toBe('none')
      expect(check(largest, AT, AT + maximum.size - 1)).not.toBe(0)
      expect(read(largest, maximum.fields)).toEqual(values(maximum.fields))
      expect(toHex(largest.subarray(0, AT)) + toHex(largest.subarray(AT + maximum.size))).toBe('a5'.repeat(AT + 9))
    })
  })
}

function read(b: Uint8Array, fields: Record<string, Reading>): Record<string, unknown> {
  return Object.fromEntries(Object.entries(fields).map(([name, [reader]]) => [name, reader(b, AT)]))
}

function values(fields: Record<string, Reading>): Record<string, unknown> {
  return Object.fromEntries(Object.entries(fields).map(([name, [, value]]) => [name, value]))
}
