// detour fault: tells a running gateway what shall go wrong, and what no more.

import { Argument, Command, InvalidArgumentError } from 'commander'
import { type ControlClient, connectControl } from '../control/client.ts'
import type { ReplyBodies } from '../control/protocol.ts'
import { FAULT_KINDS, FAULT_NAMES, PROCESS_KINDS, parseFaults } from '../device/faults.ts'
import { onlySocket } from './face.ts'
import { painter } from './table.ts'
import { VIEWS } from './views.ts'

interface FaultOptions {
  socket?: string
  json?: boolean
}

/** Settings that are options of `add`; the words behind each. */
const OPTIONS = {
  share: 'how many of the packets, such as 10%; all when not given',
  at: 'begin so much later',
  for: 'end so much after that',
  direction: 'of what the gateway transmits, the usual, of what it receives, or both',
  cidr: 'only packets whose inner addresses are in it, one of them',
  port: 'only packets with it, TCP or UDP, source or destination',
  protocol: 'only packets of it',
  depth: 'reorder: how many packets overtake one, at most',
  time: 'delay: for how long',
  bytes: 'mtu: what the outer IP packet may have',
  larger: 'mtu: what becomes of larger packets',
  seed: 'the dice',
} as const

/** The subcommand `fault`. */
export function faultCommand(): Command {
  const command = new Command('fault')
    .description('Tells a running gateway what shall go wrong; see also --faults and --fault of detour gateway.')
    .option('-s, --socket <PATH>', 'the control socket; otherwise the only one that is alive')
    .option('--json', 'data instead of a table')
    .addHelpText('after', help())
  const add = new Command('add')
    .description('Adds faults, of a kind or as a SPEC: kinds and settings with commas between them.')
    .addArgument(new Argument('<FAULT>', 'the kind, or a SPEC such as mtu=1400,larger=truncate'))
    .action((spec: string, _: object, command: Command) => addFault(spec, command))
  for (const [name, text] of Object.entries(OPTIONS)) add.option(`--${name} <${name.toUpperCase()}>`, text)
  add.addHelpText(
    'after',
    `
Examples:
  detour fault add drop --share 10% --for 30s --port 80
  detour fault add delay --time 50ms --direction both
  detour fault add mtu=1400,larger=truncate,direction=receive

detour fault --help lists the kinds.`,
  )
  const list = new Command('list')
    .description('Shows the faults, and how many packets each has befallen.')
    .addHelpText('after', "\nExamples:\n  detour fault list\n  detour fault list --json | jq '.faults[].packets'")
    .action((_: object, command: Command) => talk(command, client => client.ask('faults', {})))
  const clear = new Command('clear')
    .description('Ends and forgets one fault, or all.')
    .addArgument(new Argument('[ID]', 'as the list has it; all when not given').argParser(parseId))
    .addHelpText('after', '\nExamples:\n  detour fault clear 2\n  detour fault clear')
    .action((id: number | undefined, _: object, command: Command) =>
      talk(command, client => client.ask('clearFaults', id === undefined ? {} : { id })),
    )
  return command.addCommand(add).addCommand(list).addCommand(clear)
}

function help(): string {
  const width = Math.max(...FAULT_NAMES.map(name => name.length))
  const kinds = FAULT_NAMES.map(name => `  ${name.padEnd(width)}  ${FAULT_KINDS[name]}`)
  return `
Faults:
${kinds.join('\n')}

Lengths and checksums of altered packets are right, but for corrupt. Without a direction packets go wrong that the
gateway transmits. ${PROCESS_KINDS.join(', ')} take no share and no packets to choose.

Examples:
  detour fault add drop --share 10% --for 30s --port 80
  detour fault add mtu=1400,larger=truncate,direction=receive
  detour fault list
  detour fault clear 2

The same as a schedule, for detour gateway --faults:
  - { at: 5s, for: 10s, fault: drop, share: 10%, flows: { cidr: 10.0.0.0/8, port: 80, protocol: tcp } }
  - { at: 20s, fault: hang, for: 2s }`
}

function addFault(word: string, command: Command): Promise<void> {
  const given = command.opts<Partial<Record<keyof typeof OPTIONS, string>>>()
  const settings = Object.entries(given).map(([name, value]) => `${name}=${value}`)
  const spec = [word, ...settings].join(',')
  // Refused here as there, but before anything is asked.
  parseFaults(spec)
  return talk(command, client => client.ask('addFault', { spec }))
}

async function talk(command: Command, ask: (client: ControlClient) => Promise<ReplyBodies['faults']>): Promise<void> {
  const { socket, json } = command.optsWithGlobals<FaultOptions>()
  const client = await connectControl(socket ?? (await onlySocket()))
  try {
    const reply = await ask(client)
    const lines = VIEWS.faults(reply, { paint: painter(process.stdout), all: false })
    process.stdout.write(json ? `${JSON.stringify({ faults: reply.rows }, null, 2)}\n` : `${lines.join('\n')}\n`)
  } finally {
    client.close()
  }
}

function parseId(word: string): number {
  if (/^\d{1,9}$/.test(word)) return Number(word)
  throw new InvalidArgumentError('Allowed: the number of a fault, see detour fault list.')
}
