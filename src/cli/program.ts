// The program: finds the subcommand, loads only that one, and turns errors into messages and exit statuses.

import { Command, CommanderError, Help, type Option } from 'commander'
import { packageVersion } from '../control/package.ts'
import { DetourError, exitStatus } from '../errors.ts'

interface Entry {
  name: string
  summary: string
  /** Imports the subcommand; the others' code stays unread. */
  load(): Promise<Command>
}

const COMMANDS: Entry[] = [
  {
    name: 'lab',
    summary: 'real traffic through tunnel and gateway, in network namespaces of its own (root)',
    load: async () => (await import('./lab.ts')).labCommand(),
  },
  {
    name: 'node',
    summary: "the daemon of a cluster node: steers its pods' packets through the tunnel (root)",
    load: async () => (await import('./node.ts')).nodeCommand(),
  },
  {
    name: 'cni',
    summary: 'the chained CNI plugin, and its installer',
    load: async () => (await import('./cni.ts')).cniCommand(),
  },
  {
    name: 'gateway',
    summary: 'the inspection endpoint, simulated: terminates tunnels, applies a policy',
    load: async () => (await import('./gateway.ts')).gatewayCommand(),
  },
  {
    name: 'profiles',
    summary: 'the clouds and vendors that a tunnel can be like, explained',
    load: async () => (await import('./profiles.ts')).profilesCommand(),
  },
  {
    name: 'fault',
    summary: 'what shall go wrong at a running gateway: loss, delay, damage, death',
    load: async () => (await import('./fault.ts')).faultCommand(),
  },
  {
    name: 'conform',
    summary: 'an inspection endpoint, asked what a cloud would ask of it, and judged',
    load: async () => (await import('./conform.ts')).conformCommand(),
  },
  {
    name: 'policy',
    summary: 'Kubernetes and Cilium network policies, checked and explained',
    load: async () => (await import('./policy.ts')).policyCommand(),
  },
  {
    name: 'replay',
    summary: 'a capture through the dataplane and a gateway, with a report',
    load: async () => (await import('./replay.ts')).replayCommand(),
  },
  {
    name: 'diff',
    summary: 'two replays, or two gateways: what was decided differently',
    load: async () => (await import('./diff.ts')).diffCommand(),
  },
  {
    name: 'encap',
    summary: 'a capture into the tunnel: plain packets in, tunnel packets out',
    load: async () => (await import('./convert.ts')).encapCommand(),
  },
  {
    name: 'decap',
    summary: 'a capture out of the tunnel: tunnel packets in, plain packets out',
    load: async () => (await import('./convert.ts')).decapCommand(),
  },
  {
    name: 'show',
    summary: 'counters, drops, flows, attachments, endpoints and underlay of a running face',
    load: async () => (await import('./show.ts')).showCommand(),
  },
  {
    name: 'trace',
    summary: 'packets of a running node, and what each stage did with them and why',
    load: async () => (await import('./trace.ts')).traceCommand(),
  },
]

const EXAMPLES = `
Examples:
  sudo detour lab --profile vxlan --fail open       the whole topology on this machine, with a report
  detour gateway --listen 0.0.0.0:6081 --policy rules.yaml
  detour profiles aws-gwlb                          what a cloud's gateway load balancer sends and expects
  detour fault add drop --share 10% --for 30s
  detour conform --profile vxlan --target 10.0.0.2 --junit conform.xml
  detour policy explain --policy policies/ --inventory cluster.json --from shop/web-0 --to shop/db-0 --port 5432
  detour replay -r in.pcap -w returned.pcap --policy rules.yaml
  detour diff before.jsonl after.jsonl              which flows does the new policy treat otherwise?
  zcat in.pcap.gz | detour encap -r - -w out.pcap --local 10.0.0.1 --remote 10.0.0.2 --vni 7
  detour decap -r out.pcap -w in-again.pcap
  detour show drops --watch
  detour trace --filter verdict=drop --count 10

detour COMMAND --help says more.`

/** The program with all subcommands as names, and the one that is wanted loaded. */
async function build(argv: string[]): Promise<Command> {
  const program = new Command('detour')
    .description("Steers pods' traffic through a tunnel to an inspection endpoint and back.")
    .version(packageVersion(), '-V, --version', 'print the version')
    .helpOption('-h, --help', 'print this help')
    .addHelpText('after', EXAMPLES)
    .exitOverride()
  const wanted = argv[0] === 'help' ? argv[1] : argv[0]
  for (const { name, summary, load } of COMMANDS) {
    const command = name === wanted ? await load() : new Command(name)
    program.addCommand(command.summary(summary))
  }
  return adopt(program, 'detour')
}

/** Of options that may be repeated, help need not say that without them there are none. */
function optionDescription(this: Help, option: Option): string {
  const { defaultValue, description } = option
  const none = Array.isArray(defaultValue) && defaultValue.length === 0
  return none ? description : Help.prototype.optionDescription.call(this, option)
}

/** Gives a command and those below it the program's manners; `addCommand` does not. */
function adopt(command: Command, path: string): Command {
  command.configureHelp({ optionDescription })
  command.exitOverride().showHelpAfterError(`Usage: ${path} ${command.usage()}\nTry: ${path} --help`)
  for (const child of command.commands) adopt(child, `${path} ${child.name()}`)
  return command
}

/** Prints an error and ends the process: 2 for wrong usage, 1 for all else. */
function fail(error: unknown): never {
  if (error instanceof CommanderError) process.exit(/^commander\.(helpDisplayed|version)$/.test(error.code) ? 0 : 2)
  const debug = process.env.DETOUR_DEBUG === '1'
  const message = error instanceof Error ? error.message : String(error)
  if (debug && error instanceof Error) console.error(error)
  else if (error instanceof DetourError) console.error(`detour: ${message}`)
  else console.error(`detour: unexpected error: ${message} (set DETOUR_DEBUG=1 for where)`)
  process.exit(exitStatus(error))
}

/** Runs the command line `argv`, the program's own name left out, in this process. */
export async function runProgram(argv: string[]): Promise<void> {
  // A reader that has seen enough, like `head`, is no failure.
  process.stdout.on('error', error =>
    (error as NodeJS.ErrnoException).code === 'EPIPE' ? process.exit(0) : fail(error),
  )
  process.on('uncaughtException', fail)
  await build(argv)
    .then(program => program.parseAsync(argv, { from: 'user' }), fail)
    .catch(fail)
}
