// Runs benches by name, each in a process of its own, compares with an earlier run, and draws a page. A bench is a file here
// that exports `run(bench: Bench): Promise<void>`.

import { fork } from 'node:child_process'
import { appendFileSync, writeFileSync } from 'node:fs'
import { extname } from 'node:path'
import { fileURLToPath } from 'node:url'
import { Command, CommanderError, InvalidArgumentError } from 'commander'
import { painter } from '../src/cli/table.ts'
import { DetourError } from '../src/errors.ts'
import { compare, MIN_ROUNDS, parseGate, show } from './compare.ts'
import { load, machine } from './harness.ts'
import { writeReport } from './report.ts'
import { pool, type Result, readResults } from './result.ts'

/** What each bench asks, in the order of a run: memory, files, traffic. */
const BENCHES: Record<string, string> = {
  wire: 'reading and writing header fields: offset functions against an object a header',
  checksum: 'the Internet checksum in plain JavaScript, 20 bytes to 64 KiB: by bytes, words, views',
  flow: "a packet's cost in the flow table, 1 k to 1 M flows, against a Map",
  ring: 'frames between two threads: the ring against a message port, by batch size',
  pipeline: 'a small packet into the tunnel and back in memory: ns and allocated bytes',
  offline: 'captures through encap, decap and replay, whole commands, against tcpdump, editcap, tcprewrite',
  inspection: 'policies of ports and of HTTP requests, replayed through node and gateway',
  signatures: 'random TCP through 1, 1,000 and 10,000 threat signatures',
  tcp: 'TCP through the tunnel, both directions, with and without super-packets on the underlay (root)',
  hairpin: 'TCP from pod to pod through the gateway and back (root)',
  pps: 'small packets: how many arrive, and what each costs the machine (root)',
  rtt: 'round trip of one byte (root)',
  flows: 'new flows a second (root)',
  restart: 'packets lost while the daemon is killed, upgraded, stopped and started (root)',
  idle: 'processor time of an idle node (root)',
  hundred: 'a hundred attached pods: attaching one more, memory of each, TCP of the busy one (root)',
  soak: 'mixed traffic for minutes: leaks, reordering, checksums, unexplained drops (root)',
}

const EXAMPLES = `
Examples:
  npm run bench -- --list
  npm run bench -- tcp rtt --rounds 7
  npm run bench -- --json base.jsonl                         measure all, keep the results
  npm run bench -- --compare base.jsonl --gate 10%           measure again; status 1 when a ratio fell by more
  npm run bench -- --compare base.jsonl --with new.jsonl     compare two files, measure nothing
  npm run bench -- --with new.jsonl --html page.html         draw a file

What is compared is each contender's ratio to the baseline measured beside it, never an absolute number. A ratio has fallen
when its median is lower by more than the gate and its rounds (10th to 90th percentile) do not overlap with the base's.
What fell is measured once more, and the rounds of both runs count. Results of several runs in one file are pooled.

Exit status: 0, or 1 when a ratio fell or a bench failed, or 2 for wrong usage, bad files and nothing to compare.`

interface Options {
  list?: true
  quick?: true
  rounds?: number
  json?: string
  compare?: string
  with?: string
  gate?: number
  html?: string
}

const PAGE = 'bench/report.html'

function parseRounds(text: string): number {
  if (!/^[1-9]\d{0,3}$/.test(text)) throw new InvalidArgumentError('allowed: a number from 1')
  return Number(text)
}

const program = new Command('npm run bench --')
  .description('Measures Detour beside what people would use instead: each question with a baseline in the same run.')
  .argument('[name...]', 'which benches (default: all)')
  .option('--list', 'say what each bench asks')
  .option('--rounds <N>', 'measure everything so many times, in turn (default: 5)', parseRounds)
  .option('--quick', 'one round of small questions, to see that everything runs')
  .option('--json <FILE>', 'write one JSON line a result')
  .option('--compare <FILE>', 'compare with the results of an earlier run')
  .option('--with <FILE>', 'take the results from this file instead of measuring')
  .option('--gate <PERCENT>', 'by how much a ratio may fall (default: 10%)', parseGate)
  .option('--html <FILE>', `where the page with the plots goes (default: ${PAGE}; with --with: nowhere)`)
  .addHelpText('after', EXAMPLES)
  .showHelpAfterError('Try: npm run bench -- --help')
  .exitOverride()
  .action(main)

async function main(names: string[], options: Options): Promise<void> {
  if (options.list) return list()
  for (const name of names)
    if (!Object.hasOwn(BENCHES, name))
      throw new DetourError('usage', `no bench is called '${name}'; there are ${Object.keys(BENCHES).join(', ')}`)
  const rounds = options.rounds ?? (options.quick ? 1 : 5)
  const { compare: basePath, with: newPath, gate = 0.1 } = options
  if (newPath !== undefined && basePath === undefined && options.html === undefined)
    throw new DetourError('usage', '--with FILE needs --compare FILE or --html FILE')
  if (basePath !== undefined && newPath === undefined && rounds < MIN_ROUNDS)
    throw new DetourError('usage', `--compare needs --rounds ${MIN_ROUNDS} or more to tell a fall from noise`)
  // The base is read first, so that a bad file is not found out after an hour of measuring.
  const base = basePath === undefined ? undefined : readResults(basePath)
  const wanted = names.length > 0 ? names : Object.keys(BENCHES)
  const asked = (results: Result[]) => pool(results.filter(result => wanted.includes(result.bench)))
  const run = { rounds, quick: options.quick === true }
  const results = newPath === undefined ? await measure(wanted, run, options.json) : readResults(newPath)
  if (base !== undefined) {
    let comparison = compare(asked(base), asked(results), gate)
    if (newPath === undefined && comparison.fallen.length > 0) {
      const again = wanted.filter(name => comparison.fallen.some(row => row.bench === name))
      console.log(`\n== measured once more, because something fell: ${again.join(', ')}`)
      results.push(...(await measure(again, run, options.json, 'a')))
      comparison = compare(asked(base), asked(results), gate)
    }
    console.log(`\n== compared with ${basePath}`)
    for (const line of show(comparison, gate, painter(process.stdout))) console.log(line)
    if (comparison.fallen.length > 0) process.exitCode = 1
    if (comparison.judged === 0) process.exitCode = 2
  }
  const page = options.html ?? (newPath === undefined && results.length > 0 ? PAGE : undefined)
  if (page !== undefined) {
    writeReport(page, asked(results))
    console.log(`\nReport: ${page}`)
  }
}

function list(): void {
  const width = Math.max(...Object.keys(BENCHES).map(name => name.length))
  for (const [name, asks] of Object.entries(BENCHES)) console.log(`${name.padEnd(width)}  ${asks}`)
}

/** Runs benches one after the other; one that fails sets the exit status, and the others still run. */
async function measure(
  names: string[],
  run: { rounds: number; quick: boolean },
  json: string | undefined,
  flag: 'w' | 'a' = 'w',
): Promise<Result[]> {
  if (json !== undefined) writeFileSync(json, '', { flag })
  console.log(`${machine}, load ${load.toFixed(1)}`)
  const results: Result[] = []
  const record = (result: Result) => {
    results.push(result)
    if (json !== undefined) appendFileSync(json, `${JSON.stringify(result)}\n`)
  }
  for (const name of names) {
    console.log(`\n== ${name}`)
    const status = await runChild(name, run, record)
    if (status === 'SIGINT' || status === 'SIGTERM') process.exit(130)
    if (status === 0) continue
    console.error(`${name} failed (${status})`)
    process.exitCode = 1
  }
  return results
}

/** Runs one bench to its end: its exit status or the signal that ended it. What is asked to end ends it, so that it cleans up. */
function runChild(
  name: string,
  { rounds, quick }: { rounds: number; quick: boolean },
  record: (result: Result) => void,
): Promise<number | string> {
  const file = fileURLToPath(new URL(`child${extname(import.meta.url)}`, import.meta.url))
  const child = fork(file, [name, String(rounds), quick ? 'quick' : 'full'])
  child.on('message', message => record(message as Result))
  let stopped = false
  const stop = (signal: NodeJS.Signals) => {
    stopped = true
    // A terminal tells the whole process group by itself.
    if (signal === 'SIGTERM') child.kill(signal)
  }
  process.on('SIGINT', stop).on('SIGTERM', stop)
  return new Promise(resolve => {
    child.once('close', (code, signal) => {
      process.off('SIGINT', stop).off('SIGTERM', stop)
      resolve(stopped ? 'SIGINT' : (signal ?? code ?? 1))
    })
  })
}

try {
  await program.parseAsync()
} catch (error) {
  if (error instanceof CommanderError) process.exit(error.code === 'commander.helpDisplayed' ? 0 : 2)
  // A file that cannot be written, as the file system says it.
  const known = error instanceof DetourError || (error as NodeJS.ErrnoException).syscall === 'open'
  console.error('bench:', known ? (error as Error).message : error)
  process.exit(2)
}
