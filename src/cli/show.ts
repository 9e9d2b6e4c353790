// detour show: what a running face says about itself, once or again and again.

import { setTimeout as sleep } from 'node:timers/promises'
import { Argument, Command, InvalidArgumentError, Option } from 'commander'
import { type ControlClient, connectControl } from '../control/client.ts'
import type { Info, ReplyBodies } from '../control/protocol.ts'
import { FLOW_LIMIT, FLOW_ORDERS, type FlowOrder, type FlowQuery, type FlowVerdict } from '../control/source.ts'
import { didYouMean } from '../control/suggest.ts'
import { introduce, onlySocket } from './face.ts'
import { filterParser } from './filter.ts'
import { painter } from './table.ts'
import { type ShowTopic, TOPICS, VIEWS } from './views.ts'

const FLOW_VERDICTS: readonly FlowVerdict[] = ['pass', 'steer', 'drop', 'allow', 'reset']

interface ShowOptions {
  watch?: number | true
  json?: boolean
  socket?: string
  limit: number
  sort: FlowOrder
  filter?: Partial<FlowQuery>
  all?: boolean
}

/** The subcommand `show`. */
export function showCommand(): Command {
  return new Command('show')
    .description(
      'Shows counters, drops, flows, attachments, endpoints, the underlay, alarms or faults of a running detour.',
    )
    .addArgument(new Argument('<topic>', TOPICS.join(', ')).argParser(parseTopic))
    .option('-w, --watch [SECONDS]', 'again every second, or as often as said, with rates', parseSeconds)
    .option('--json', 'data instead of a table; with --watch one object a line')
    .option('-s, --socket <PATH>', 'the control socket; otherwise the only one that is alive')
    .option('-n, --limit <N>', 'at most so many flows', parseLimit, 20)
    .addOption(new Option('--sort <ORDER>', 'order of the flows').choices(FLOW_ORDERS).default('bytes'))
    .option('-f, --filter <FIELD=VALUE>', 'only such flows; may be repeated', filterParser(FLOW_VERDICTS))
    .option('-a, --all', 'rows that are zero too')
    .addHelpText(
      'after',
      `
Examples:
  detour show stats --watch            counters of every stage, with rates
  detour show drops                    what was dropped where, and what that means
  detour show flows --filter port=443 --filter verdict=drop --sort packets
  detour show endpoints --watch 5      health and latency
  detour show attachments --json | jq '.attachments[].heartbeatAgeMs'`,
    )
    .action((topic: ShowTopic, options: ShowOptions, command: Command) => {
      if (options.filter !== undefined && topic !== 'flows')
        command.error(`error: --filter is for flows, not for ${topic}`)
      return show(topic, options)
    })
}

async function show<T extends ShowTopic>(topic: T, options: ShowOptions): Promise<void> {
  const client = await connectControl(options.socket ?? (await onlySocket()))
  try {
    if (options.watch === undefined) {
      const { info, reply } = await fetch(client, topic, options)
      process.stdout.write(options.json ? `${json(topic, info, reply, 2)}\n` : `${draw(topic, info, reply, options)}\n`)
    } else {
      await watch(client, topic, options, (options.watch === true ? 1 : options.watch) * 1000)
    }
  } finally {
    client.close()
  }
}

interface Answer<T extends ShowTopic> {
  info: Info
  reply: ReplyBodies[T]
  at: number
}

async function fetch<T extends ShowTopic>(client: ControlClient, topic: T, options: ShowOptions): Promise<Answer<T>> {
  const { limit, sort: order, filter } = options
  const body = topic === 'flows' ? { ...filter, limit, order } : {}
  const [info, reply] = await Promise.all([client.ask('info', {}), client.ask<ShowTopic>(topic, body as FlowQuery)])
  return { info, reply: reply as ReplyBodies[T], at: performance.now() }
}

/** Redraws a terminal; to anything else, one table after the other. Ends with Ctrl-C, or when the face is gone. */
async function watch<T extends ShowTopic>(
  client: ControlClient,
  topic: T,
  options: ShowOptions,
  intervalMs: number,
): Promise<void> {
  const { stdout } = process
  const stopped = new AbortController()
  const stop = () => stopped.abort()
  process.once('SIGINT', stop).once('SIGTERM', stop)
  const redraw = stdout.isTTY && !options.json
  if (redraw) stdout.write('\x1b[?25l\x1b[?7l\x1b[2J')
  try {
    let before: Answer<T> | undefined
    while (!stopped.signal.aborted) {
      const answer = await fetch(client, topic, options)
      if (options.json) stdout.write(`${json(topic, answer.info, answer.reply)}\n`)
      else {
        const text = draw(
          topic,
          answer.info,
          answer.reply,
          options,
          before && { ...before, seconds: since(before, answer) },
        )
        stdout.write(redraw ? fill(text, stdout.rows) : `${text}\n\n`)
      }
      before = answer
      await sleep(intervalMs, undefined, { signal: stopped.signal }).catch(() => {})
    }
  } finally {
    if (redraw) stdout.write('\x1b[?7h\x1b[?25h\n')
    process.off('SIGINT', stop).off('SIGTERM', stop)
  }
}

const since = (before: { at: number }, now: { at: number }) => (now.at - before.at) / 1000

/** Text over what the terminal shows now; what does not fit is cut off and counted. */
function fill(text: string, height: number): string {
  let lines = text.split('\n')
  if (lines.length >= height) lines = [...lines.slice(0, height - 2), `... ${lines.length - height + 2} more lines`]
  return `\x1b[H${lines.map(line => `${line}\x1b[K\n`).join('')}\x1b[J`
}

function draw<T extends ShowTopic>(
  topic: T,
  info: Info,
  reply: ReplyBodies[T],
  options: ShowOptions,
  before?: { reply: ReplyBodies[T]; seconds: number },
): string {
  const paint = painter(process.stdout)
  const lines = VIEWS[topic](reply, { paint, all: options.all === true, before })
  return [paint('dim', introduce(info)), ...lines].join('\n')
}

function json<T extends ShowTopic>(topic: T, info: Info, reply: ReplyBodies[T], indent?: number): string {
  const { rows, ...rest } = reply
  return JSON.stringify({ info, [topic]: rows, ...rest }, undefined, indent)
}

function parseTopic(word: string): ShowTopic {
  const topic = TOPICS.find(known => known === word)
  if (topic !== undefined) return topic
  throw new InvalidArgumentError(`Allowed: ${TOPICS.join(', ')}${didYouMean(word, TOPICS)}`)
}

function parseSeconds(word: string): number {
  const seconds = Number(word)
  if (seconds >= 0.1 && seconds <= 3600) return seconds
  throw new InvalidArgumentError('Allowed: 0.1 to 3600 seconds.')
}

function parseLimit(word: string): number {
  const limit = Number(word)
  if (Number.isInteger(limit) && limit >= 1 && limit <= FLOW_LIMIT) return limit
  throw new InvalidArgumentError(`Allowed: 1 to ${FLOW_LIMIT}.`)
}
