// Descriptors passed from one end of a Unix socket to the other are the same open files.

import { closeSync, fstatSync, mkdtempSync, openSync, readdirSync, readSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterEach, beforeEach, describe, expect, it } from 'vitest'
import { close } from '../../src/os/libc.ts'
import { createSharedMemory, mapSharedMemory, unmapSharedMemory } from '../../src/os/memfd.ts'
import { acceptFrom, connectTo, listenAt, peerOf, receiveDescriptors, sendDescriptors } from '../../src/os/passing.ts'

describe.skipIf(process.platform !== 'linux')('passing descriptors', () => {
  let folder: string
  const ends: number[] = []
  let pair: [sender: number, receiver: number]

  beforeEach(() => {
    folder = mkdtempSync(join(tmpdir(), 'dts-'))
    const listening = listenAt(join(folder, 's'))
    const sender = connectTo(join(folder, 's'))
    pair = [sender, acceptFrom(listening)]
    ends.push(listening, ...pair)
  })
  afterEach(() => {
    for (const fd of ends.splice(0)) close(fd)
    rmSync(folder, { recursive: true })
  })

  it('knows who is at the other end', () => {
    expect(peerOf(pair[1])).toEqual({ pid: process.pid, uid: process.getuid?.() })
  })

  it('more than one message may carry, in order, close-on-exec', () => {
    const [sender, receiver] = pair
    const file = join(folder, 'numbers')
    writeFileSync(file, 'x'.repeat(1000))
    const sent = Array.from({ length: 600 }, () => openSync(file, 'r'))
    // Each file stands at a position of its own, which the receiver's then has, too.
    for (const [i, fd] of sent.entries()) readSync(fd, Buffer.alloc(i), 0, i, null)
    sendDescriptors(sender, sent)
    for (const fd of sent) closeSync(fd)
    const received = receiveDescriptors(receiver, 600)
    for (const [i, fd] of received.entries()) {
      expect(readSync(fd, Buffer.alloc(1000), 0, 1000, null)).toBe(1000 - i)
    }
    for (const fd of received) closeSync(fd)
  })

  it('memory is the same at both ends, and lives as long as one of them', () => {
    const [sender, receiver] = pair
    const fd = createSharedMemory('dts', 8192)
    const here = mapSharedMemory(fd, 8192, 'dts')
    new Uint8Array(here.memory)[5000] = 7
    sendDescriptors(sender, [fd])
    close(fd)
    unmapSharedMemory(here)
    const [other] = receiveDescriptors(receiver, 1)
    const there = mapSharedMemory(other, 8192, 'dts', 4096)
    expect(new Uint8Array(there.memory)[5000 - 4096]).toBe(7)
    expect(there.memory.byteLength).toBe(4096)
    unmapSharedMemory(there)
    close(other)
  })

  it('fewer than were expected are an error, and none is left open', () => {
    const [sender, receiver] = pair
    const count = () => readdirSync('/proc/self/fd').length
    const before = count()
    sendDescriptors(sender, [sender, sender])
    expect(() => receiveDescriptors(receiver, 3)).toThrow(/recvmsg/)
    expect(count()).toBe(before)
    expect(fstatSync(receiver).isSocket()).toBe(true)
  })

  it('refuses a path that no socket can have', () => {
    expect(() => listenAt(`/${'x'.repeat(108)}`)).toThrow(/1 to 107 bytes/)
  })
})
