// System calls: results, -errno, addresses of shared memory from the main thread and from a worker.
import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { openSync, readFileSync } from 'node:fs'
import { Worker } from 'node:worker_threads'
import { describe, expect, it } from 'vitest'
import { DetourError } from '../../src/errors.ts'
import * as libc from '../../src/os/libc.ts'

describe('libc', () => {
  it('moves bytes through an eventfd into shared memory', () => {
    const bytes = new BigUint64Array(new SharedArrayBuffer(64), 8, 2)
    const fd = libc.eventfd()
    expect(libc.read(fd, libc.addressOf(bytes), 8)).toBe(-libc.ERRNO.EAGAIN)
    bytes[0] = 7n
    expect(libc.write(fd, libc.addressOf(bytes), 8)).toBe(8)
    expect(libc.read(fd, libc.addressOf(bytes) + 8, 8)).toBe(8)
    expect([...bytes]).toEqual([7n, 7n])
    expect(libc.close(fd)).toBe(0)
    expect(libc.close(fd)).toBe(-libc.ERRNO.EBADF)
  })

  it('sees the same shared memory at the same address from a worker', async () => {
    const shared = new SharedArrayBuffer(128)
    const code = `const koffi = require('koffi'); const { workerData, parentPort } = require('node:worker_threads')
      parentPort.postMessage(Number(koffi.address(new Uint8Array(workerData, 3))))`
    const worker = new Worker(code, { eval: true, workerData: shared })
    const seen = await new Promise((resolve, reject) => worker.once('message', resolve).once('error', reject))
    expect(seen).toBe(libc.addressOf(new Uint8Array(shared, 3)))
    await worker.terminate()
  })

  it('sends and receives many datagrams in one call', () => {
    const fd = libc.must(libc.socket(libc.AF.INET, libc.SOCK.DGRAM, 0), 'socket', 'udp')
    const peer = libc.must(libc.socket(libc.AF.INET, libc.SOCK.DGRAM, 0), 'socket', 'udp')
    let port = 30_000 + (process.pid % 30_000)
    const address = () => Uint8Array.of(2, 0, port >> 8, port & 255, 127, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0)
    while (libc.bind(peer, address()) === -libc.ERRNO.EADDRINUSE) port++
    libc.must(libc.connect(fd, address()), 'connect', 'udp')
    const payload = Uint8Array.of(1, 2, 3, 4)
    const into = new Uint8Array(8)
    const vector = (at: number, length: number) => BigUint64Array.of(BigInt(at), BigInt(length))
    const vectors = [vector(libc.addressOf(payload), 1), vector(libc.addressOf(payload) + 1, 3)]
    const messages = (from: BigUint64Array[]) => {
      const view = new BigUint64Array(8 * from.length) // struct mmsghdr: 56 bytes of msghdr, u32 msg_len, padding
      for (const [i, v] of from.entries()) view.set([0n, 0n, BigInt(libc.addressOf(v)), 1n], i * 8)
      return view
    }
    const out = messages(vectors)
    expect(libc.sendmmsg(fd, libc.addressOf(out), 2, 0)).toBe(2)
    const places = [vector(libc.addressOf(into), 4), vector(libc.addressOf(into) + 4, 4)]
    const inbox = messages(places)
    expect(libc.recvmmsg(peer, libc.addressOf(inbox), 2, libc.MSG.WAITFORONE)).toBe(2)
    expect([Number(inbox[7]), Number(inbox[15])]).toEqual([1, 3])
    expect([...into]).toEqual([1, 0, 0, 0, 2, 3, 4, 0])
    libc.close(fd)
    libc.close(peer)
  })

  it('waits for a descriptor through signals', async () => {
    const fd = libc.eventfd()
    const waiting = Int32Array.of(fd, libc.POLL.IN)
    // A signal when we wait already, and only later what we wait for.
    const code = `import os, signal, time
while 'poll' not in open(f'/proc/{os.getppid()}/wchan').read(): time.sleep(0.01)
os.kill(os.getppid(), signal.SIGCHLD)
time.sleep(0.2)
os.write(3, (1).to_bytes(8, 'little'))`
    const child = spawn('python3', ['-c', code], { stdio: ['ignore', 'inherit', 'inherit', fd] })
    const ended = once(child, 'exit')
    expect(libc.poll(libc.addressOf(waiting), 1, 60_000)).toBe(1)
    expect(await ended).toEqual([0, null])
    libc.close(fd)
  })

  it('maps a file', () => {
    const expected = readFileSync(process.execPath).subarray(0, 4)
    const fd = libc.dup(openSync(process.execPath, 'r'))
    const mapping = libc.mmap(fd, 4096, libc.PROT.READ, 0, process.execPath)
    expect(new Uint8Array(mapping.memory, 0, 4)).toEqual(new Uint8Array(expected))
    expect(libc.munmap(mapping)).toBe(0)
    expect(() => libc.mmap(-1, 4096, libc.PROT.READ, 0, 'nothing')).toThrow(/mmap nothing: EBADF/)
    libc.close(fd)
  })

  it('says which call on which object failed and why', () => {
    const error = libc.systemError('bind', '192.0.2.1:4789', -libc.ERRNO.EADDRNOTAVAIL)
    expect(error).toBeInstanceOf(DetourError)
    expect(error.code).toBe('system')
    expect(error.message).toMatch(/^bind 192\.0\.2\.1:4789: EADDRNOTAVAIL \(.*\); no interface here has it/)
    expect(libc.systemError('setns', 'x', -libc.ERRNO.EPERM).code).toBe('permission')
    expect(libc.errnoText(12_345)).toBe('errno 12345')
  })
})
