// A small assembler for BPF programs: one method an instruction, labels for jumps (linux/bpf.h, RFC 9669).

/** Registers: R0 result, R1 to R5 arguments (lost over a call), R6 to R9 kept, R10 frame pointer (read-only). */
export const R0 = 0
export const R1 = 1
export const R2 = 2
export const R3 = 3
export const R4 = 4
export const R5 = 5
export const R6 = 6
export const R7 = 7
export const R8 = 8
export const R9 = 9
export const R10 = 10

/** Kernel functions by number. */
export const HELPER = {
  MAP_LOOKUP: 1,
  KTIME_GET_NS: 5,
  REDIRECT: 23,
  SKB_LOAD_BYTES: 26,
  REDIRECT_MAP: 51,
  REDIRECT_NEIGH: 152,
} as const

/** Offsets of `struct __sk_buff`, the context of a classifier; protocol is in network byte order as the processor reads it. */
export const SKB = { MARK: 8, PROTOCOL: 16, VLAN_PRESENT: 20, INGRESS_IFINDEX: 36, TC_INDEX: 44 } as const

/** Offsets of `struct xdp_md`, the context of an XDP program; data and data_end load as pointers. */
export const XDP = { DATA: 0, DATA_END: 4, RX_QUEUE: 16 } as const

/** What an XDP program returns when the kernel is to have the packet. */
export const XDP_PASS = 2

/** What a classifier returns: go on to the next one, or drop. */
export const VERDICT = { NEXT: -1, DROP: 2 } as const

const SIZE = { 1: 0x10, 2: 0x08, 4: 0x00, 8: 0x18 } as const
type Width = keyof typeof SIZE

const JUMP = { '==': 0x10, '!=': 0x50, '>': 0x20, '>=': 0x30, '<': 0xa0, '<=': 0xb0 } as const

/** Unsigned comparisons. */
export type Comparison = keyof typeof JUMP

const PSEUDO_MAP_FD = 1

/** Collects instructions; `assemble` resolves the labels. */
export class Assembler {
  private readonly code: { op: number; dst: number; src: number; off: number; imm: number; to?: string }[] = []
  private readonly labels = new Map<string, number>()

  private emit(op: number, dst = 0, src = 0, off = 0, imm = 0, to?: string): this {
    this.code.push({ op, dst, src, off, imm, to })
    return this
  }

  /** dst = imm, sign-extended. */
  set(dst: number, imm: number): this {
    return this.emit(0xb7, dst, 0, 0, imm)
  }

  /** dst = src. */
  move(dst: number, src: number): this {
    return this.emit(0xbf, dst, src)
  }

  /** dst += imm. */
  add(dst: number, imm: number): this {
    return this.emit(0x07, dst, 0, 0, imm)
  }

  /** dst &= imm. */
  and(dst: number, imm: number): this {
    return this.emit(0x57, dst, 0, 0, imm)
  }

  /** dst >>= imm, unsigned. */
  shiftRight(dst: number, imm: number): this {
    return this.emit(0x77, dst, 0, 0, imm)
  }

  /** dst -= src in 32 bits; the upper half becomes 0. */
  subtract32(dst: number, src: number): this {
    return this.emit(0x1c, dst, src)
  }

  /** dst += imm in 32 bits; the upper half becomes 0. */
  add32(dst: number, imm: number): this {
    return this.emit(0x04, dst, 0, 0, imm)
  }

  /** dst += src. */
  addRegister(dst: number, src: number): this {
    return this.emit(0x0f, dst, src)
  }

  /** dst |= src. */
  or(dst: number, src: number): this {
    return this.emit(0x4f, dst, src)
  }

  /** dst ^= src in 32 bits; the upper half becomes 0. */
  xor32(dst: number, src: number): this {
    return this.emit(0xac, dst, src)
  }

  /** dst ^= imm in 32 bits; the upper half becomes 0. */
  xorImmediate32(dst: number, imm: number): this {
    return this.emit(0xa4, dst, 0, 0, imm)
  }

  /** dst *= imm in 32 bits; the upper half becomes 0. */
  multiply32(dst: number, imm: number): this {
    return this.emit(0x24, dst, 0, 0, imm)
  }

  /** dst %= imm in 32 bits, unsigned; the upper half becomes 0. */
  modulo32(dst: number, imm: number): this {
    return this.emit(0x94, dst, 0, 0, imm)
  }

  /** dst <<= imm. */
  shiftLeft(dst: number, imm: number): this {
    return this.emit(0x67, dst, 0, 0, imm)
  }

  /** dst = the `width` bytes at src + off. */
  load(width: Width, dst: number, src: number, off: number): this {
    return this.emit(0x61 | SIZE[width], dst, src, off)
  }

  /** The `width` bytes at dst + off = src. */
  store(width: Width, dst: number, off: number, src: number): this {
    return this.emit(0x63 | SIZE[width], dst, src, off)
  }

  /** The `width` bytes at dst + off = imm. */
  storeImmediate(width: Width, dst: number, off: number, imm: number): this {
    return this.emit(0x62 | SIZE[width], dst, 0, off, imm)
  }

  /** The eight bytes at dst + off += src, atomically. */
  atomicAdd(dst: number, off: number, src: number): this {
    return this.emit(0xdb, dst, src, off)
  }

  /** dst = the map of a file descriptor. */
  map(dst: number, fd: number): this {
    return this.emit(0x18, dst, PSEUDO_MAP_FD, 0, fd).emit(0)
  }

  /** R0 = helper(R1 to R5). */
  call(helper: number): this {
    return this.emit(0x85, 0, 0, 0, helper)
  }

  /** Goes to a label further down. */
  jump(label: string): this {
    return this.emit(0x05, 0, 0, 0, 0, label)
  }

  /** Goes to a label when `dst` compares to an immediate (sign-extended). */
  when(dst: number, comparison: Comparison, imm: number, label: string): this {
    return this.emit(0x05 | JUMP[comparison], dst, 0, 0, imm, label)
  }

  /** Goes to a label when the lower half of `dst` compares to a 32-bit immediate. */
  when32(dst: number, comparison: Comparison, imm: number, label: string): this {
    return this.emit(0x06 | JUMP[comparison], dst, 0, 0, imm, label)
  }

  /** Goes to a label when `dst` compares to a register. */
  whenRegister(dst: number, comparison: Comparison, src: number, label: string): this {
    return this.emit(0x0d | JUMP[comparison], dst, src, 0, 0, label)
  }

  /** Returns R0, or an immediate. */
  exit(verdict?: number): this {
    if (verdict !== undefined) this.set(R0, verdict)
    return this.emit(0x95)
  }

  /** Names the place of the next instruction. */
  label(name: string): this {
    this.labels.set(name, this.code.length)
    return this
  }

  /** The instructions as the kernel reads them. Throws Error for a label that is nowhere. */
  assemble(): Uint8Array {
    const view = new DataView(new ArrayBuffer(this.code.length * 8))
    for (const [i, { op, dst, src, off, imm, to }] of this.code.entries()) {
      const target = to === undefined ? undefined : this.labels.get(to)
      if (to !== undefined && target === undefined) throw new Error(`BPF label '${to}' is nowhere`)
      view.setUint8(i * 8, op)
      view.setUint8(i * 8 + 1, dst | (src << 4))
      view.setInt16(i * 8 + 2, target === undefined ? off : target - i - 1, true)
      view.setInt32(i * 8 + 4, imm, true)
    }
    return new Uint8Array(view.buffer)
  }
}
