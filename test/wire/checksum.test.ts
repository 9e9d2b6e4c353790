// The Internet checksum against the text of RFC 1071 and RFC 1624 and against sums made word by word.

import fc from 'fast-check'
import { describe, expect, it } from 'vitest'
import { finish, fold, pseudo, pseudo4, pseudo6, sum, update } from '../../src/wire/checksum.ts'
import { fixture, shared } from './harness.ts'

/** RFC 1071 section 1, literally: 16-bit words added in ones' complement, one after the other. */
function byTheBook(b: Uint8Array): number {
  let total = 0
  for (let i = 0; i < b.length; i += 2) {
    total += b[i] * 256 + (i + 1 < b.length ? b[i + 1] : 0)
    if (total > 0xffff) total -= 0xffff
  }
  return total
}

describe('sum', () => {
  it('gives the example of RFC 1071 section 3', () => {
    const b = shared('0001 f203 f4f5 f6f7')
    expect(sum(b, 0, 8)).toBe(0xddf2)
    expect(finish(sum(b, 0, 8))).toBe(0x220d)
  })

  it('is what the book says, for every length and odd and even places', () => {
    fc.assert(
      fc.property(fc.uint8Array({ maxLength: 100 }), fc.nat(7), (bytes, before) => {
        const b = shared(Buffer.from(bytes).toString('hex'), before, 20)
        expect(sum(b, before, before + bytes.length) % 0xffff).toBe(byTheBook(bytes) % 0xffff)
      }),
    )
  })

  it('is that for long runs too, wherever the array begins in its memory and up to its very end', () => {
    const any = fc.nat(7)
    fc.assert(
      fc.property(fc.uint8Array({ minLength: 100, maxLength: 400 }), any, any, any, (bytes, begin, before, after) => {
        const memory = new Uint8Array(begin + before + bytes.length + after).fill(0xa5)
        const b = memory.subarray(begin)
        b.set(bytes, before)
        expect(sum(b, before, before + bytes.length, 0x1234)).toBe(fold(byTheBook(bytes) + 0x1234))
      }),
    )
  })

  it('does not overflow: 128 KiB of ones', () => {
    const b = new Uint8Array(131072).fill(0xff)
    expect(sum(b, 0, b.length)).toBe(0xffff)
    expect(sum(b, 0, b.length, 0xffff)).toBe(0xffff)
    b[131071] = 0xfe
    expect(sum(b, 0, b.length)).toBe(0xfffe)
    expect(sum(new Uint8Array(131072), 0, 131072)).toBe(0)
  })

  it('may be made in parts', () => {
    fc.assert(
      fc.property(fc.uint8Array({ minLength: 2, maxLength: 200 }), fc.nat(99), (b, cut) => {
        const middle = Math.min(cut * 2, b.length)
        const parts = sum(b, middle, b.length, sum(b, 0, middle))
        expect(parts % 0xffff).toBe(sum(b, 0, b.length) % 0xffff)
      }),
    )
  })

  it('is right when two threads of packets take turns, as two pools would', () => {
    const one = shared('0001 f203 f4f5 f6f7 0001 f203 f4f5 f6f7')
    const other = one.subarray(2)
    for (let i = 0; i < 3; i++) {
      expect(sum(one, 0, 16)).toBe(byTheBook(one))
      expect(sum(other, 0, 14)).toBe(byTheBook(other))
    }
  })

  it('folds anything that fits 32 bits, signed or not', () => {
    fc.assert(
      fc.property(fc.nat(0xffffffff), n => {
        expect(fold(n)).toBeLessThanOrEqual(0xffff)
        expect(fold(n) % 0xffff).toBe(n % 0xffff)
        expect(fold(n | 0)).toBe(fold(n))
      }),
    )
  })
})

describe('update', () => {
  it('gives the example of RFC 1624 section 4', () => {
    expect(update(0xdd2f, 0x5555, 0x3285)).toBe(0x0000)
  })

  it('gives what computing it anew gives', () => {
    fc.assert(
      fc.property(fc.uint8Array({ minLength: 8, maxLength: 60 }), fc.nat(0xffff), (b, word) => {
        // RFC 1624 section 3: equation 3 is exact as long as something in the header is not zero.
        b[0] = 0x45
        const before = finish(sum(b, 0, b.length))
        const from = (b[2] << 8) | b[3]
        b[2] = word >> 8
        b[3] = word
        expect(update(before, from, word)).toBe(finish(sum(b, 0, b.length)))
      }),
    )
  })
})

describe('pseudo-headers', () => {
  it('are the sums of the bytes that the RFCs draw', () => {
    const four = fixture('udp, odd payload')
    const addresses4 = Buffer.from(four.subarray(26, 34)).toString('hex')
    expect(pseudo4(four, 14, 17, 49)).toBe(byTheBook(shared(`${addresses4} 00 11 0031`)))
    const six = fixture('udp over ipv6')
    const addresses6 = Buffer.from(six.subarray(22, 54)).toString('hex')
    expect(pseudo6(six, 14, 17, 70_000)).toBe(byTheBook(shared(`${addresses6} 00011170 000000 11`)))
    expect(pseudo(four, 14, 17, 49)).toBe(pseudo4(four, 14, 17, 49))
    expect(pseudo(six, 14, 17, 49)).toBe(pseudo6(six, 14, 17, 49))
  })
})
