// Capture files against the tools of others: copies of real captures that must stay equal, files that editcap wrote,
// faults at every byte, pacing by a clock of our own.
import { execFileSync, spawn } from 'node:child_process'
import { once } from 'node:events'
import { closeSync, copyFileSync, readFileSync, statSync, writeFileSync } from 'node:fs'
import { createRequire } from 'node:module'
import { gzipSync } from 'node:zlib'
import { describe, expect, it } from 'vitest'
import { createCapture, Origins, openCapture, PcapReader, PcapWriter } from '../../src/device/pcap.ts'
import { DROP } from '../../src/drop.ts'
import { Batch } from '../../src/memory/batch.ts'
import { copyBytes } from '../../src/memory/copy.ts'
import { COLUMN, StageCounters } from '../../src/memory/counters.ts'
import { captures, copy, fields, fixture, missing, newPool, read, run, temporary, title } from './captures.ts'

const SEEN = [
  'frame.time_epoch',
  'frame.len',
  'frame.cap_len',
  'frame.comment',
  'frame.interface_name',
  'frame.section_number',
]
const ADDRESSES = ['ip.src', 'ip.dst', 'ipv6.src', 'ipv6.dst', 'udp.port', 'tcp.port', 'tcp.seq_raw', '_ws.col.Info']
const BROKEN = ['pcapng/be/test901.pcapng', 'pcapng/le/test901.pcapng']
const sound = captures.filter(name => !BROKEN.includes(name))

describe.skipIf(missing !== undefined)(title('a copy of a real capture'), () => {
  // Everything but Ethernet changes its length, and tshark counts custom blocks, of which private ones are not copied.
  const other = [
    'dnscap/frags.pcap',
    'gopacket/test_loopback.pcap',
    'ndpi/http-crash-content-disposition.pcap',
    'ndpi/selfsigned.pcap',
    'tcpdump/babel.pcap',
    'tcpdump/babel_rtt.pcap',
    'tcpdump/dns-badcookie.pcap',
  ]
  const mixed = ['006', '012', '017', '018', '100', '101', '102', '200', '201', '202'].map(n => `test${n}.pcapng`)
  // The little-endian twins of the pcapng suite are read by the other tests and by the fuzzer.
  const ethernet = sound.filter(
    name => !name.startsWith('pcapng/le/') && !other.includes(name) && !mixed.includes(name.slice(-14)),
  )

  it.each(ethernet)('%s: every packet, time, comment and interface', async name => {
    const to = temporary('copy')
    const { reader, writer, available } = await copy(fixture(name), to)
    expect([reader.fault, writer.fault, available]).toEqual([undefined, undefined, true])
    expect(fields(to, ...SEEN)).toEqual(fields(fixture(name), ...SEEN))
    if (!name.startsWith('pcapng/')) expect(dump(to)).toBe(dump(fixture(name)))
  })

  it.each([...other, 'pcapng/le/test006.pcapng', 'pcapng/be/test100.pcapng'])(
    '%s: what is inside the link header',
    async name => {
      const to = temporary('copy')
      await copy(fixture(name), to)
      const expected = fields(fixture(name), 'frame.time_epoch', ...ADDRESSES)
      expect(expected.length).toBeGreaterThan(0)
      expect(fields(to, 'frame.time_epoch', ...ADDRESSES)).toEqual(expected)
    },
  )

  it.each([
    'http.pcap',
    'http-ipv6.pcapng',
    'tcpdump/geneve.pcap',
    'pcapng/le/test001.pcapng',
    'pcapng/be/test001.pcapng',
    'pcapng/le/test011.pcapng',
    'pcapng/be/test016.pcapng',
  ])('%s: the very same bytes', async name => {
    const to = temporary('copy')
    await copy(fixture(name), to)
    expect(readFileSync(to).equals(readFileSync(fixture(name)))).toBe(true)
  })

  it('keeps two sections with their interfaces', async () => {
    const to = temporary('sections')
    await copy(fixture('pcapng/be/test202.pcapng'), to)
    const seen = ['frame.section_number', 'frame.interface_id', 'frame.interface_name', 'frame.comment']
    const packets = (path: string) => fields(path, ...seen).filter(line => line.includes('\t'))
    const named = (path: string) => packets(path).filter(line => line.split('\t')[2] !== '')
    expect(new Set(named(to).map(line => line[0])).size).toBeGreaterThan(1)
    expect(named(to)).toEqual(named(fixture('pcapng/be/test202.pcapng')))
  })

  it('does not carry over custom blocks that forbid it', async () => {
    const to = temporary('private')
    await copy(fixture('pcapng/le/test018.pcapng'), to)
    expect(run('tshark', '-r', fixture('pcapng/le/test018.pcapng')).stdout).toContain('will not be copied')
    const after = run('tshark', '-r', to).stdout
    expect(after).toContain('will be copied')
    expect(after).not.toContain('will not be copied')
  })
})

describe.skipIf(missing !== undefined)(title('formats'), () => {
  it.each([
    ['pcap', 'pcap'],
    ['nsecpcap', 'pcap-ns'],
    ['pcapng', 'pcapng'],
  ] as const)('what editcap -F %s writes comes back as the same bytes', async (theirs, ours) => {
    const from = temporary(`editcap.${theirs}`)
    run('editcap', '-F', theirs, '-a', '3:a comment', '-a', '128:the last', fixture('http-ipv6.pcapng'), from)
    const to = temporary('formats')
    const { reader } = await copy(from, to)
    expect((await openFormat(from)).format).toBe(ours)
    expect(reader.packets).toBe(128)
    expect(readFileSync(to).equals(readFileSync(from))).toBe(true)
  })

  it.each([
    ['pcap-ns', 'nanoseconds'],
    ['pcapng', 'nanoseconds'],
    ['pcap', 'microseconds'],
  ] as const)('%s made from pcapng has its %s, and capinfos agrees on packets and bytes', async (format, unit) => {
    const to = temporary(`made.${format}`)
    await copy(fixture('http-ipv6.pcapng'), to, format, false)
    const times = fields(fixture('http-ipv6.pcapng'), 'frame.time_epoch', 'frame.len')
    const cut = unit === 'nanoseconds' ? times : times.map(line => line.replace(/\d{3}\t/, '000\t'))
    expect(fields(to, 'frame.time_epoch', 'frame.len')).toEqual(cut)
    const infos = (path: string) => run('capinfos', '-TrcdtE', path).stdout.trim().split('\t').slice(2)
    expect(infos(to)).toEqual(infos(fixture('http-ipv6.pcapng')))
    expect(run('tcpdump', '-nnr', to, '-tttt', '--time-stamp-precision=nano').stdout.split('\n')).toHaveLength(129)
  })

  // It has no types.
  const pcapp = createRequire(import.meta.url)('pcap-parser')

  it('pcap-parser, too, reads what is written as pcap', async () => {
    const to = temporary('parser.pcap')
    await copy(fixture('http-ipv6.pcapng'), to, 'pcap')
    const theirs: string[] = []
    await new Promise((resolve, reject) => {
      const parser = pcapp.parse(to)
      parser.on('packet', ({ header, data }: { header: Record<string, number>; data: Buffer }) =>
        theirs.push(`${header.timestampSeconds} ${header.timestampMicroseconds} ${data.toString('hex')}`),
      )
      parser.on('end', resolve)
      parser.on('error', reject)
    })
    const ours: string[] = []
    await read(to, (pool, batch) => {
      for (const frame of batch.frames.subarray(0, batch.length)) {
        const data = Buffer.from(pool.bytes.slice(pool.start[frame], pool.start[frame] + pool.length[frame]))
        ours.push(`${pool.seconds[frame]} ${pool.nanoseconds[frame] / 1000} ${data.toString('hex')}`)
      }
    })
    expect(theirs).toHaveLength(128)
    expect(ours).toEqual(theirs)
  })

  it('a file larger than the buffers', async () => {
    const big = temporary('big.pcapng')
    run('mergecap', '-a', '-F', 'pcapng', '-w', big, ...Array(24).fill(fixture('http.pcap')))
    const to = temporary('big-copy')
    const { reader } = await copy(big, to)
    expect(statSync(big).size).toBeGreaterThan(3 << 20)
    expect(reader.packets).toBe(24 * 283)
    expect(readFileSync(to).equals(readFileSync(big))).toBe(true)
  })

  it('captured short packets keep the length they had', async () => {
    const short = temporary('short.pcap')
    run('editcap', '-F', 'pcap', '-s', '60', fixture('http.pcap'), short)
    const to = temporary('short-copy')
    await copy(short, to)
    expect(fields(to, ...SEEN)).toEqual(fields(short, ...SEEN))
    expect(fields(to, 'frame.len')).toEqual(fields(fixture('http.pcap'), 'frame.len'))
  })

  it.each([
    ['loopback, big-endian', 108, Buffer.from('00000002', 'hex')],
    ['loopback, little-endian', 0, Buffer.from('02000000', 'hex')],
    ['raw IP', 101, Buffer.alloc(0)],
    ['raw IPv4', 228, Buffer.alloc(0)],
    ['Linux cooked', 113, Buffer.from('00000001000602000000000300000800', 'hex')],
    ['Linux cooked 2', 276, Buffer.from('0800000000000002000100060200000000030000', 'hex')],
  ])('%s as tshark sees it', async (_name, linktype, link) => {
    const from = temporary('link.pcap')
    writeFileSync(from, relink(fixture('gopacket/test_ethernet.pcap'), linktype, link))
    const expected = fields(from, ...ADDRESSES)
    expect(expected[0]).toMatch(/^\d+\.\d+/)
    const to = temporary('link-copy')
    await copy(from, to)
    expect(fields(to, ...ADDRESSES)).toEqual(expected)
    expect(new Set(fields(to, 'eth.src.lg', 'frame.protocols').map(line => line.slice(0, 15)))).toEqual(
      new Set(['1\teth:ethertype']),
    )
  })
})

describe('input', () => {
  it('may be compressed by gzip', async () => {
    const path = temporary('http.pcap.gz')
    const bytes = readFileSync(fixture('http.pcap'))
    writeFileSync(path, Buffer.concat([gzipSync(bytes.subarray(0, 50_000)), gzipSync(bytes.subarray(50_000))]))
    const { reader, file } = await read(path)
    expect([reader.packets, file.size, reader.fault]).toEqual([283, bytes.length, undefined])
  })

  it('may be compressed and cut off: what there is gets read', async () => {
    const path = temporary('cut.pcap.gz')
    writeFileSync(path, gzipSync(readFileSync(fixture('http.pcap'))).subarray(0, 100_000))
    const { reader } = await read(path)
    expect(reader.packets).toBeGreaterThan(100)
    expect(reader.packets).toBeLessThan(283)
    expect(reader.fault?.message).toMatch(/cut\.pcap\.gz: offset \d+: /)
  })

  it.each([
    ['as it is', (bytes: Uint8Array) => bytes],
    ['compressed', (bytes: Uint8Array) => gzipSync(bytes)],
  ])('may be a pipe, %s', async (_name, pack) => {
    const path = temporary(`pipe-${_name}`)
    run('mkfifo', path)
    const stored = temporary('stored')
    writeFileSync(stored, pack(readFileSync(fixture('http-ipv6.pcapng'))))
    const writer = spawn('dd', [`if=${stored}`, `of=${path}`, 'bs=1000', 'status=none'])
    const done = new Promise(resolve => writer.on('exit', resolve))
    const { reader } = await read(path)
    expect(await done).toBe(0)
    expect([reader.packets, reader.fault]).toEqual([128, undefined])
  })

  it('is shared by readers that do not know of each other', async () => {
    const file = await openCapture(fixture('http.pcap'))
    const pool = newPool()
    const readers = [0, 1].map(() => new PcapReader(pool, new StageCounters('receive'), file))
    const batch = new Batch(7)
    while (readers.some(reader => !reader.exhausted))
      for (const reader of readers) {
        reader.receive(batch)
        pool.freeAll(batch)
      }
    closeSync(file.fd)
    expect(readers.map(reader => [reader.packets, reader.position, reader.fault])).toEqual(
      Array(2).fill([283, file.size, undefined]),
    )
  })

  it.each([
    ['an empty file', 0, 'offset 0: the file is empty'],
    ['half a file header', 17, 'ends after 17 of the 24 bytes'],
  ])('refuses %s', async (_name, size, text) => {
    const path = temporary('bad')
    writeFileSync(path, readFileSync(fixture('http.pcap')).subarray(0, size))
    await expect(openCapture(path)).rejects.toMatchObject({ code: 'bad-file', message: expect.stringContaining(text) })
  })

  it.each([
    ['another kind of file', 'README', 'starts with 52454144', 'bad-file'],
    ['compressed text', gzipSync('hello'), 'starts with 68656c6c', 'bad-file'],
    [
      'pcap of IEEE 802.11',
      Buffer.from('d4c3b2a102000400000000000000000000000400690000', 'hex'),
      'ends after 23',
      'bad-file',
    ],
    [
      'pcap of IEEE 802.11',
      Buffer.from('d4c3b2a10200040000000000000000000000040069000000', 'hex'),
      'link type 105',
      'bad-file',
    ],
  ])('refuses %s', async (_name, bytes, text, code) => {
    const path = temporary('bad')
    writeFileSync(path, bytes)
    await expect(openCapture(path)).rejects.toMatchObject({
      code,
      message: expect.stringContaining(`${path}: offset 0: `),
    })
    await expect(openCapture(path)).rejects.toThrow(text)
  })

  it('refuses a directory and what is not there', async () => {
    await expect(openCapture(temporary('.'))).rejects.toMatchObject({ code: 'bad-file' })
    await expect(openCapture(temporary('nothing'))).rejects.toMatchObject({ code: 'not-found' })
  })

  it('refuses an endless stream that is no capture, plain or compressed', async () => {
    await expect(openCapture('/dev/zero')).rejects.toMatchObject({ code: 'bad-file' })
    const fifo = temporary('endless.fifo')
    execFileSync('mkfifo', [fifo])
    const ended = once(spawn('sh', ['-c', `yes | gzip > ${fifo}`], { stdio: 'ignore' }), 'exit')
    await expect(openCapture(fifo)).rejects.toMatchObject({ code: 'bad-file' })
    await ended
  })
})

describe('a file that is cut off', () => {
  it.each(['gopacket/test_dns.pcap', 'pcapng/be/test006.pcapng'])('%s, at every byte', async name => {
    const bytes = readFileSync(fixture(name))
    const whole = await read(fixture(name))
    const path = temporary('cut')
    let before = 0
    for (let size = 28; size < bytes.length; size++) {
      writeFileSync(path, bytes.subarray(0, size))
      const { reader, counters } = await read(path)
      expect(reader.packets).toBeGreaterThanOrEqual(before)
      before = reader.packets
      expect(counters.row[COLUMN.IN_PACKETS]).toBe(reader.packets)
      if (reader.fault === undefined) continue
      expect(reader.fault).toMatchObject({ code: 'bad-file' })
      expect(reader.fault.message).toContain(
        `${path}: offset ${reader.position}: the file ends in the middle of a record`,
      )
    }
    expect(before).toBe(whole.reader.packets - 1)
  })

  it('has no fault when it is cut between records', async () => {
    const bytes = readFileSync(fixture('gopacket/test_ethernet.pcap'))
    const path = temporary('between')
    writeFileSync(path, bytes.subarray(0, 24 + 16 + bytes.readUInt32LE(32)))
    const { reader } = await read(path)
    expect([reader.packets, reader.fault]).toEqual([1, undefined])
  })

  it('delivers what comes before a lie', async () => {
    const bytes = readFileSync(fixture('gopacket/test_ethernet.pcap'))
    const second = 24 + 16 + bytes.readUInt32LE(32)
    bytes.writeUInt32LE(300_000, second + 8)
    const path = temporary('lie')
    writeFileSync(path, bytes)
    const { reader } = await read(path)
    expect(reader.packets).toBe(1)
    expect(reader.fault?.message).toBe(
      `${path}: offset ${second}: the record captured more than 262144 bytes (packets read before it: 1)`,
    )
  })
})

describe('receive', () => {
  it('counts packets that no frame holds, and goes on', async () => {
    const { reader, counters } = await read(fixture('http.pcap'), undefined, { pool: newPool(8, 1024) })
    const { row } = counters
    const held = await held1024()
    expect(reader.packets).toBe(283)
    expect(row[COLUMN.IN_PACKETS]).toBe(283)
    expect(counters.drops(DROP.OVERSIZED)).toBe(counters.drops())
    expect(counters.drops()).toBe(283 - held)
    expect(counters.drops()).toBeGreaterThan(50)
  })

  it('waits when the pool is empty, and loses nothing', async () => {
    const pool = newPool(4)
    const file = await openCapture(fixture('http.pcap'))
    const reader = new PcapReader(pool, new StageCounters('receive'), file)
    const [held, batch] = [new Batch(2), new Batch(16)]
    expect(reader.receive(held)).toBe(2)
    let received = 2
    while (!reader.exhausted) {
      const got = reader.receive(batch)
      expect(got).toBeLessThanOrEqual(2)
      if (got === 2) expect(reader.receive(batch)).toBe(0)
      received += got
      pool.freeAll(batch)
    }
    closeSync(file.fd)
    expect(received).toBe(283)
    expect(pool.sequence[held.frames[1]]).toBe(1)
  })

  it('drops what is transmitted to it', async () => {
    const pool = newPool(4)
    const file = await openCapture(fixture('http.pcap'))
    const counters = new StageCounters('receive')
    const reader = new PcapReader(pool, counters, file)
    const batch = new Batch(4)
    reader.receive(batch)
    reader.transmit(batch)
    closeSync(file.fd)
    expect([counters.drops(DROP.DEVICE_ERROR), pool.available, batch.length]).toEqual([4, 4, 0])
  })

  it('passes over a block that is larger than its buffer', async () => {
    const bytes = readFileSync(fixture('pcapng/le/test001.pcapng'))
    const large = Buffer.alloc(3 << 20)
    large.writeUInt32LE(0x0bad_beef, 0)
    large.writeUInt32LE(large.length, 4)
    large.writeUInt32LE(large.length, large.length - 4)
    const section = bytes.readUInt32LE(4)
    const path = temporary('large')
    writeFileSync(path, Buffer.concat([bytes.subarray(0, section), large, bytes.subarray(section)]))
    expect((await read(path)).reader).toMatchObject({ packets: 4, fault: undefined })
    writeFileSync(path, Buffer.concat([bytes.subarray(0, section), large.subarray(0, -1)]))
    expect((await read(path)).reader.fault?.message).toContain(`offset ${section}: the file ends in the middle`)
  })
})

describe('copying', () => {
  // Eight bytes travel as a float; a NaN may lose its bits there, and must not be let in.
  it('keeps every bit, whatever the alignment, length and bits', () => {
    const from = new DataView(new ArrayBuffer(512))
    const to = new DataView(new SharedArrayBuffer(512))
    const [source, target] = [new Uint8Array(from.buffer), new Uint8Array(to.buffer)]
    const patterns = [
      '7ff0000000000001',
      'fff4000000000000',
      'fff7fffffff7ffff',
      '0000000000000001',
      '8000000000000000',
    ]
    for (const pattern of [...patterns, 'ffffffffffffffff', '0123456789abcdef']) {
      const bytes = Buffer.from(pattern, 'hex')
      for (let round = 0; round < 4000; round++) {
        const [fromAt, toAt, length] = [round % 11, round % 13, (round * 7) % 200]
        for (let i = 0; i < length; i++) source[fromAt + i] = bytes[round & 1 ? i & 7 : 7 - (i & 7)]
        target.fill(0xa5)
        copyBytes(to, toAt, from, fromAt, length)
        for (let i = 0; i < length; i++)
          if (target[toAt + i] !== source[fromAt + i]) expect.fail(`${pattern}, byte ${i} of ${length}`)
        expect(target[toAt + length]).toBe(0xa5)
      }
    }
  })

  it('allocates nothing for a packet', async () => {
    const big = temporary('many.pcap')
    const bytes = readFileSync(fixture('http.pcap'))
    writeFileSync(big, Buffer.concat([bytes, ...Array(300).fill(bytes.subarray(24))]))
    const file = await openCapture(big)
    const pool = newPool(512, 2048)
    const batch = new Batch(256)
    const output = createCapture('/dev/null')
    const origins = new Origins(file.format)
    const round = () => {
      const reader = new PcapReader(pool, new StageCounters('receive'), file, { origins })
      const writer = new PcapWriter(pool, new StageCounters('transmit'), output, { format: 'pcap-ns', origins })
      const before = process.memoryUsage().heapUsed
      while (!reader.exhausted) {
        reader.receive(batch)
        writer.transmit(batch)
      }
      return (process.memoryUsage().heapUsed - before) / reader.packets
    }
    const measured = Array.from({ length: 7 }, round)
    closeSync(file.fd)
    closeSync(output.fd)
    // A number kept on the heap would be 12 bytes a packet.
    expect(Math.min(...measured.filter(bytes => bytes >= 0))).toBeLessThan(3)
  })
})

describe('rate', () => {
  async function paced(rate: '1x' | number, name = 'http.pcap') {
    let now = 1000
    const pool = newPool()
    const file = await openCapture(fixture(name))
    const reader = new PcapReader(pool, new StageCounters('receive'), file, { rate, clock: () => now })
    const batch = new Batch(16)
    const arrivals: number[] = []
    while (!reader.exhausted) {
      for (let i = reader.receive(batch); i > 0; i--) arrivals.push(now - 1000)
      pool.freeAll(batch)
      now += reader.nextDue()
    }
    closeSync(file.fd)
    return arrivals
  }

  it('is packets a second', async () => {
    const arrivals = await paced(1000)
    expect(arrivals).toHaveLength(283)
    expect(arrivals.at(-1)).toBeCloseTo(282, 3)
    expect(arrivals[100]).toBeCloseTo(100, 3)
  })

  it('takes packets without a time as they come', async () => {
    expect(await paced('1x', 'pcapng/le/test016.pcapng')).toEqual([0, 0, 0, expect.closeTo(2, 2)])
  })

  it('is that of the capture', async () => {
    const arrivals = await paced('1x')
    const times: number[] = []
    await read(fixture('http.pcap'), (pool, batch) => {
      for (const frame of batch.frames.subarray(0, batch.length)) times.push(pool.time[frame])
    })
    expect(arrivals).toHaveLength(283)
    let latest = 0
    times.forEach((time, i) => {
      latest = Math.max(latest, time - times[0])
      expect(arrivals[i]).toBeCloseTo(latest, 2)
    })
  })
})

describe('output', () => {
  it('that fails costs packets, which are counted, and no exception', async () => {
    const pool = newPool(64, 70_000)
    const counters = new StageCounters('transmit')
    const writer = new PcapWriter(pool, counters, createCapture('/dev/full'))
    const batch = new Batch(64)
    for (let round = 0; round < 20; round++) {
      while (batch.room > 0) {
        const frame = pool.alloc()
        pool.length[frame] = 60_000
        batch.push(frame)
      }
      writer.transmit(batch)
    }
    writer.close()
    expect(writer.fault).toMatchObject({ code: 'system', message: expect.stringContaining('/dev/full: ENOSPC') })
    expect(counters.row[COLUMN.OUT_PACKETS] + counters.drops(DROP.DEVICE_ERROR)).toBe(20 * 64)
    expect(counters.drops(DROP.DEVICE_ERROR)).toBeGreaterThan(1000)
    expect(pool.available).toBe(64)
  })

  it('is never the input', async () => {
    const path = temporary('same.pcap')
    copyFileSync(fixture('http.pcap'), path)
    const file = await openCapture(path)
    expect(() => createCapture(path, file)).toThrow(/being read/)
    closeSync(file.fd)
    expect(statSync(path).size).toBe(statSync(fixture('http.pcap')).size)
  })

  it('of nothing is a file that can be read', async () => {
    for (const format of ['pcap', 'pcap-ns', 'pcapng'] as const) {
      const path = temporary('nothing')
      const output = createCapture(path)
      new PcapWriter(newPool(2), new StageCounters('transmit'), output, { format }).close()
      closeSync(output.fd)
      const { reader, file } = await read(path)
      expect([file.format, reader.packets, reader.fault]).toEqual([format, 0, undefined])
    }
  })
})

const dump = (path: string) => run('tcpdump', '-nnXr', path).stdout

async function openFormat(path: string) {
  const file = await openCapture(path)
  closeSync(file.fd)
  return file
}

async function held1024(): Promise<number> {
  let count = 0
  await read(fixture('http.pcap'), (pool, batch) => {
    for (const frame of batch.frames.subarray(0, batch.length)) if (pool.length[frame] <= 1024 - 448) count++
  })
  return count
}

/** A pcap of the IPv4 packets of another, under a link header of another type. */
function relink(path: string, linktype: number, link: Buffer): Buffer {
  const bytes = readFileSync(path)
  const header = Buffer.from(bytes.subarray(0, 24))
  header.writeUInt32LE(linktype, 20)
  const parts: Uint8Array[] = [header]
  for (let at = 24; at < bytes.length; ) {
    const size = bytes.readUInt32LE(at + 8)
    if (bytes.readUInt16BE(at + 28) === 0x0800) {
      const record = Buffer.from(bytes.subarray(at, at + 16))
      record.writeUInt32LE(size - 14 + link.length, 8)
      record.writeUInt32LE(size - 14 + link.length, 12)
      parts.push(record, link, bytes.subarray(at + 30, at + 16 + size))
    }
    at += 16 + size
  }
  return Buffer.concat(parts)
}
