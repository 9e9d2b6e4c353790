// detour trace: packets of a running node, and what each stage did with them.

import { setTimeout as sleep } from 'node:timers/promises'
import { Command, InvalidArgumentError } from 'commander'
import { type ControlClient, connectControl } from '../control/client.ts'
import { TRACE_VERDICTS, type TraceRow, type TraceStep, type TraceVerdict } from '../control/source.ts'
import { show } from '../wire/show.ts'
import { onlySocket } from './face.ts'
import { type Filter, filterParser } from './filter.ts'
import { count as grouped, type Paint, painter, printable } from './table.ts'

const POLL_MS = 100

interface TraceOptions {
  attachment?: string
  count: number
  seconds: number
  filter?: Filter<TraceVerdict>
  json?: boolean
  socket?: string
}

/** The subcommand `trace`. */
export function traceCommand(): Command {
  return new Command('trace')
    .description('Prints packets of a running node, and what each stage did with them and why.')
    .option('-a, --attachment <ID>', 'only packets of this attachment, see detour show attachments')
    .option('-n, --count <N>', 'so many packets', parseCount, 100)
    .option('-t, --seconds <N>', 'no longer than this', parseSeconds, 60)
    .option('-f, --filter <FIELD=VALUE>', 'only such packets; may be repeated', filterParser(TRACE_VERDICTS))
    .option('--json', 'an object a line')
    .option('-s, --socket <PATH>', 'the control socket; otherwise the only one that is alive')
    .addHelpText(
      'after',
      `
Filters: address, port (either side's), protocol, attachment, verdict (${TRACE_VERDICTS.join(', ')}).
What the kernel drops before any stage (spoofed packets) is told as a number at the end.

Examples:
  detour trace --attachment 4f2a9c-eth0-0a1b2c3d --count 20
  detour trace --filter verdict=drop --seconds 600
  detour trace --filter port=443 --json | jq -r '.steps[-1].reason'`,
    )
    .action(trace)
}

async function trace(options: TraceOptions): Promise<void> {
  const { attachment, count, seconds, filter, json, socket } = options
  const client = await connectControl(socket ?? (await onlySocket()))
  const stopped = new AbortController()
  const stop = () => stopped.abort()
  process.once('SIGINT', stop).once('SIGTERM', stop)
  const paint = painter(process.stdout)
  try {
    const before = await stoppedByKernel(client, attachment ?? filter?.attachment)
    const query = { ...filter, ...(attachment && { attachment }), count, limitMs: seconds * 1000 }
    let page = await client.ask('trace', { session: 0, query, stop: false })
    let told = 0
    while (page.ended === '') {
      if (page.rows.length === 0) await sleep(POLL_MS, undefined, { signal: stopped.signal }).catch(() => {})
      page = await client.ask('trace', { session: page.session, stop: stopped.signal.aborted })
      for (const row of page.rows) process.stdout.write(json ? `${jsonLine(row)}\n` : `${textLines(row, paint)}\n`)
      told += page.rows.length
    }
    const lost = page.lost === 0 ? '' : `; ${grouped(page.lost)} more were too many to be told of`
    if (json) return
    process.stderr.write(`${grouped(told)} packets, ended: ${page.ended}${lost}\n`)
    for (const [reason, packets] of await stoppedByKernel(client, attachment ?? filter?.attachment)) {
      const more = packets - (before.get(reason) ?? 0)
      if (more > 0) process.stderr.write(`the kernel stopped ${grouped(more)} before any stage: ${reason}\n`)
    }
  } finally {
    process.off('SIGINT', stop).off('SIGTERM', stop)
    client.close()
  }
}

/** What gates have dropped, in words: no stage has seen it. */
async function stoppedByKernel(client: ControlClient, attachment: string | undefined): Promise<Map<string, number>> {
  const found = new Map<string, number>()
  const { rows } = await client.ask('drops', {})
  for (const { worker, stage, reason, text, packets } of rows) {
    if (worker !== 'kernel' || (attachment !== undefined && stage !== `gate ${attachment}`)) continue
    const words = `${reason} (${text})`
    found.set(words, (found.get(words) ?? 0) + packets)
  }
  return found
}

/** A packet as tcpdump would write it. */
const packet = ({ bytes, length, segment }: TraceRow) =>
  show(bytes, 0, bytes.length, { cut: bytes.length < length }) + (segment === 0 ? '' : ` (segments of ${segment})`)

/** Local time, as tcpdump has it. */
function clock(timeMs: number): string {
  const at = new Date(timeMs)
  const two = (n: number) => String(n).padStart(2, '0')
  const micros = String(Math.floor((timeMs % 1000) * 1000)).padStart(6, '0')
  return `${two(at.getHours())}:${two(at.getMinutes())}:${two(at.getSeconds())}.${micros}`
}

function textLines(row: TraceRow, paint: Paint): string {
  const way = row.leg === 'toward' ? '>' : '<'
  const head = `${clock(row.timeMs)} ${row.attachment || '-'} ${way} ${packet(row)}`
  const steps = row.steps.map(step => stepText(step, paint)).join(paint('dim', ' | '))
  return `${printable(head)}\n    ${steps}`
}

const LOUD = { dropped: 'red', passed: 'yellow', sent: 'green', on: undefined } as const

function stepText({ stage, outcome, reason, text }: TraceStep, paint: Paint): string {
  const style = LOUD[outcome as keyof typeof LOUD]
  const on = stage === 'decide' ? 'STEER' : 'ok'
  const what = outcome === 'on' ? on : outcome === 'sent' ? '' : outcome.toUpperCase()
  const words = [stage, what, reason, text && `(${text})`].filter(word => word !== '').join(' ')
  return style === undefined ? printable(words) : paint(style, printable(words))
}

function jsonLine(row: TraceRow): string {
  const { bytes, timeMs, ...rest } = row
  const fields = { time: new Date(timeMs).toISOString(), ...rest, packet: packet(row) }
  return JSON.stringify({ ...fields, bytes: Buffer.from(bytes).toString('hex') })
}

function parseCount(word: string): number {
  const count = Number(word)
  if (Number.isInteger(count) && count >= 1 && count <= 1_000_000) return count
  throw new InvalidArgumentError('Allowed: 1 to 1000000.')
}

function parseSeconds(word: string): number {
  const seconds = Number(word)
  if (seconds >= 0.1 && seconds <= 3600) return seconds
  throw new InvalidArgumentError('Allowed: 0.1 to 3600 seconds.')
}
