// Offline conversion of one capture file, or of some of its pieces, as a job of a thread pool.

import type { ConvertJob, ConvertResult } from '../src/control/worker-input.ts'
import { Origins, PcapReader, PcapWriter, Pieces } from '../src/device/pcap.ts'
import { Counters } from '../src/memory/counters.ts'
import { createPool, HEADROOM, Pool } from '../src/memory/pool.ts'
import { Converter } from '../src/pipeline/converter.ts'
import { inlineStages } from '../src/pipeline/inlining.ts'

/** Frames in flight: one batch, and answers of stages that make frames. */
const FRAMES = 320

/** The largest packet that a capture file holds (tcpdump's snapshot length), and its outer headers. */
const FRAME = HEADROOM + 262_144

/** Batches between two notes of progress. */
const NOTE = 64

/** Converts one file, or a thread's share of it. */
export function convert(job: ConvertJob): ConvertResult {
  inlineStages()
  const began = performance.now()
  const pool = new Pool(createPool({ frames: FRAMES, frameSize: FRAME, headroom: HEADROOM }))
  const counters = new Counters()
  const origins = new Origins(job.input.format)
  const pieces = job.pieces && new Pieces(job.pieces)
  const reader = new PcapReader(pool, counters.stage('read'), job.input, { origins, pieces })
  const writer = new PcapWriter(pool, counters.stage('write'), job.output, { format: job.format, origins, pieces })
  const converter = new Converter(pool, counters, reader, writer, job.direction, job.tunnel)
  const progress = new Float64Array(job.progress)
  let batches = 0
  const drain = () => {
    while (converter.step()) if (++batches % NOTE === 0) progress[0] = reader.packets
    progress[0] = reader.packets
  }
  if (pieces === undefined) drain()
  else
    while (converter.nextPiece()) {
      drain()
      writer.endPiece()
    }
  writer.close()
  const faults = [reader.fault, writer.fault].filter(fault => fault !== undefined).map(fault => fault.message)
  return { counters: counters.share(), faults, ms: performance.now() - began }
}
