// The assembler against the encodings of RFC 9669; test/netns/os.test.ts has the kernel and bpftool read them too.
import { describe, expect, it } from 'vitest'
import { Assembler, HELPER, R0, R1, R2, R6, R10 } from '../../src/os/assembler.ts'

const hex = (a: Assembler) => Buffer.from(a.assemble()).toString('hex').match(/.{16}/g)

describe('assembler', () => {
  it('encodes each instruction', () => {
    expect(hex(new Assembler().move(R6, R1).set(R0, -1).add(R2, -8).and(R2, 0xff).shiftRight(R0, 20))).toEqual([
      'bf16000000000000',
      'b7000000ffffffff',
      '07020000f8ffffff',
      '57020000ff000000',
      '7700000014000000',
    ])
    expect(
      hex(new Assembler().load(4, R2, R6, 8).load(1, R2, R10, -10).load(2, R2, R10, -4).load(8, R1, R6, 0)),
    ).toEqual(['6162080000000000', '71a2f6ff00000000', '69a2fcff00000000', '7961000000000000'])
    expect(hex(new Assembler().store(4, R6, 8, R1).store(8, R10, -16, R2).storeImmediate(4, R10, -4, 1))).toEqual([
      '6316080000000000',
      '7b2af0ff00000000',
      '620afcff01000000',
    ])
    expect(
      hex(new Assembler().atomicAdd(R6, 16, R1).subtract32(R0, R1).add32(R1, 8).call(HELPER.REDIRECT).exit()),
    ).toEqual(['db16100000000000', '1c10000000000000', '0401000008000000', '8500000017000000', '9500000000000000'])
    expect(hex(new Assembler().map(R1, 7))).toEqual(['1811000007000000', '0000000000000000'])
  })

  it('measures jumps from the next instruction, over two-slot loads too', () => {
    const a = new Assembler().when(R2, '==', 5, 'end').whenRegister(R0, '<=', R1, 'end').jump('end').map(R1, 3)
    expect(hex(a.when32(R2, '!=', -1, 'end').label('end').exit(0))).toEqual([
      '1502050005000000',
      'bd10040000000000',
      '0500030000000000',
      '1811000003000000',
      '0000000000000000',
      '56020000ffffffff',
      'b700000000000000',
      '9500000000000000',
    ])
  })

  it('refuses a jump to nowhere', () => {
    expect(() => new Assembler().jump('away').assemble()).toThrow("BPF label 'away' is nowhere")
  })
})
