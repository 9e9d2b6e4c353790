// detour diff: what two runs have decided differently.

import { createReadStream } from 'node:fs'
import { createInterface } from 'node:readline'
import { Command } from 'commander'
import { DetourError } from '../errors.ts'
import { type Comparison, compare, type Decision, type Difference, Run } from '../gateway/compare.ts'
import { count, painter, table } from './table.ts'

interface Options {
  byRule?: boolean
  json?: boolean
}

/** The subcommand `diff`. */
export function diffCommand(): Command {
  return new Command('diff')
    .description('Compares the verdict logs of two runs, or their EVE files: what changed, appeared and vanished.')
    .argument('<before>', 'verdict log or EVE file of one run')
    .argument('<after>', 'that of the other')
    .option('--by-rule', 'flows that another rule treats in the same way are different, too')
    .option('--json', 'as JSON')
    .addHelpText(
      'after',
      `
Exit status: 0 when both have decided the same, 1 otherwise.

Examples, what this new policy would change for yesterday's traffic:
  detour replay -r yesterday.pcap --policy old.yaml --log before.jsonl
  detour replay -r yesterday.pcap --policy new.yaml --log after.jsonl
  detour diff before.jsonl after.jsonl

Whether Suricata and we find the same:
  detour diff suricata/eve.json ours/eve.json`,
    )
    .action(diff)
}

async function diff(before: string, after: string, options: Options): Promise<void> {
  const comparison = compare(await read(before), await read(after), options.byRule)
  if (options.json) console.log(JSON.stringify(asData(comparison), null, 2))
  else print(comparison)
  if (comparison.differences.length > 0) process.exitCode = 1
}

async function read(path: string): Promise<Run> {
  const run = new Run()
  let number = 0
  try {
    for await (const line of createInterface({ input: createReadStream(path), crlfDelay: Number.POSITIVE_INFINITY }))
      run.line(line, `${path}:${++number}`)
  } catch (error) {
    if (error instanceof DetourError) throw error
    throw new DetourError('bad-file', `${path}: cannot be read (${(error as Error).message})`, { cause: error })
  }
  return run
}

const COLOURS = { changed: 'yellow', appeared: 'green', vanished: 'red' } as const
const KINDS = ['changed', 'appeared', 'vanished'] as const
const COLUMNS = [
  ...[{ title: 'WHAT' }, { title: 'PACKET', right: true, varying: true }, { title: 'PROTOCOL' }, { title: 'SOURCE' }],
  ...[{ title: 'DESTINATION' }, { title: 'BEFORE' }, { title: 'AFTER' }],
]

function print(comparison: Comparison): void {
  const paint = painter(process.stdout)
  const { differences } = comparison
  const counts = KINDS.map(kind => ({ kind, n: differences.filter(({ what }) => what === kind).length }))
  if (differences.length > 0) for (const line of table(COLUMNS, differences.map(row), paint)) console.log(line)
  const words = counts.map(({ kind, n }) => (n > 0 ? paint(COLOURS[kind], `${count(n)} ${kind}`) : `0 ${kind}`))
  console.log([`${count(comparison.same)} the same`, ...words].join(', '))
}

function row({ what, before, after }: Difference): string[] {
  const { packet, protocol, source, destination } = (before ?? after) as Decision
  const said = (decision?: Decision) => (decision === undefined ? '-' : `${decision.verdict} (${decision.by})`)
  return [what, `${packet ?? ''}`, protocol, source, destination, said(before), said(after)]
}

function asData({ same, differences }: Comparison): object {
  const totals = KINDS.map(kind => [kind, differences.filter(({ what }) => what === kind).length])
  return { same, ...Object.fromEntries(totals), differences }
}
