// detour show: what a running face says about itself, once or again and again.

import { setTimeout as sleep } from 'node:timers/promises'
import { Argument, Command, InvalidArgumentError, Option } from 'commander'
import { type ControlClient, connectControl } from '../control/client.ts'
import type { Info, ReplyBodies } from '../control/protocol.ts'
import { liveSockets, socketDirectory } from '../control/registry.ts'
import { FLOW_LIMIT, FLOW_ORDERS, type FlowOrder, type FlowQuery, type FlowVerdict } from '../control/source.ts'
import { didYouMean } from '../control/suggest.ts'
import { DetourError } from '../errors.ts'
import { duration, painter, printable } from './table.ts'
import { type ShowTopic, TOPICS, VIEWS } from './views.ts'

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
    .description('Shows counters, drops, flows, attachments, the underlay or alarms of a running detour.')
    .addArgument(new Argument('<topic>', TOPICS.join(', ')).argParser(parseTopic))
    .option('-w, --watch [SECONDS]', 'again every second, or as often as said, with rates', parseSeconds)
    .option('--json', 'data instead of a table; with --watch one object a line')
    .option('-s, --socket <PATH>', 'the control socket; otherwise the only one that is alive')
    .option('-n, --limit <N>', 'at most so many flows', parseLimit, 20)
    .addOption(new Option('--sort <ORDER>', 'order of the flows').choices(FLOW_ORDERS).default('bytes'))
    .option('-f, --filter <FIELD=VALUE>', 'only such flows; may be repeated', parseFilter)
    .option('-a, --all', 'rows that are zero too')
    .addHelpText(
      'after',
      `
Examples:
  detour show stats --watch            counters of every stage, with rates
  detour show drops                    what was dropped where, and what that means
  detour show flows --filter port=443 --filter verdict=drop --sort packets
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

/** The socket of the only face that runs. */
async function onlySocket(): Promise<string> {
  const directory = socketDirectory()
  const live = await liveSockets(directory)
  if (live.length === 1) return live[0].path
  if (live.length === 0) {
    const root = directory === '/run/detour' ? '' : ' (those that root started are in /run/detour: try with sudo)'
    throw new DetourError(
      'not-found',
      `no detour is running: no socket in ${directory} answers${root}; or say --socket PATH`,
    )
  }
  const list = live.map(({ path, info }) => `  --socket ${path}   ${introduce(info)}`)
  throw new DetourError('usage', `several are running; choose one:\n${list.join('\n')}`)
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

function introduce({ face, pid, profile, version, uptimeMs }: Info): string {
  return printable(`detour ${face} ${version}, process ${pid}, profile ${profile}, up ${duration(uptimeMs)}`)
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

const FILTERS: Record<string, (value: string) => Partial<FlowQuery> | undefined> = {
  address: address => ({ address }),
  attachment: attachment => ({ attachment }),
  port: value => (isWord(value, 0xffff) ? { port: Number(value) } : undefined),
  protocol(value) {
    const protocol = { icmp: 1, tcp: 6, udp: 17, icmp6: 58 }[value]
    return protocol !== undefined ? { protocol } : isWord(value, 255) ? { protocol: Number(value) } : undefined
  },
  verdict(value) {
    const known: string[] = ['pass', 'steer', 'drop', 'allow', 'reset'] satisfies FlowVerdict[]
    return known.includes(value) ? { verdict: value as FlowVerdict } : undefined
  },
}

const isWord = (value: string, most: number) => /^\d{1,5}$/.test(value) && Number(value) <= most

function parseFilter(word: string, before: Partial<FlowQuery> = {}): Partial<FlowQuery> {
  const at = word.indexOf('=')
  const field = word.slice(0, Math.max(0, at))
  const fields = Object.keys(FILTERS)
  if (!fields.includes(field)) {
    throw new InvalidArgumentError(`Allowed: FIELD=VALUE with ${fields.join(', ')}${didYouMean(field, fields)}`)
  }
  const filter = FILTERS[field](word.slice(at + 1))
  if (filter === undefined) throw new InvalidArgumentError(`${word.slice(at + 1)} is no ${field}.`)
  return { ...before, ...filter }
}
