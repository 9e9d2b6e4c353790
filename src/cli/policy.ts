// detour policy: what Kubernetes' and Cilium's policies say of a flow, and by which rule.

import { isIP } from 'node:net'
import { Command, InvalidArgumentError, Option } from 'commander'
import { DetourError } from '../errors.ts'
import { normalPath } from '../gateway/l7/http.ts'
import { type Inventory, type Party, type Protocol, podName, readInventory } from '../gateway/policy/inventory.ts'
import { type Answer, Policies, readPolicies } from '../gateway/policy/policies.ts'
import { painter, printable, table } from './table.ts'

interface ExplainOptions {
  policy: string[]
  inventory: string
  from: string
  to: string
  port: number
  protocol: Protocol
  method?: string
  path?: string
  host?: string
  header: [string, string][]
  json?: boolean
}

/** The subcommand `policy`. */
export function policyCommand(): Command {
  return new Command('policy')
    .description('Kubernetes NetworkPolicy and CiliumNetworkPolicy, checked and explained.')
    .addCommand(checkCommand())
    .addCommand(explainCommand())
    .addHelpText(
      'after',
      `
The inventory tells which pod has which labels and addresses:
  kubectl get pods,namespaces -A -o json > cluster.json

Examples:
  detour policy check policies/
  detour policy explain --policy policies/ --inventory cluster.json --from shop/web-0 --to shop/db-0 --port 5432
  detour policy explain --policy policies/ --inventory cluster.json --from 198.51.100.7 --to shop/web-0 --port 80 \\
    --method GET --path /admin`,
    )
}

const COLUMNS = [{ title: 'POLICY' }, { title: 'RESTRICTS' }, { title: 'RULES', right: true }, { title: 'WHERE' }]

function checkCommand(): Command {
  return new Command('check')
    .description('Reads manifests, of files and directories; everything that is not understood is an error.')
    .argument('<path...>', 'manifests, or directories of them')
    .option('--json', 'the policies as JSON')
    .addHelpText('after', '\nExamples:\n  detour policy check policies/\n  detour policy check web.yaml db.yaml --json')
    .action((paths: string[], options: { json?: boolean }) => {
      const policies = readPolicies(paths)
      const rows = policies.map(({ name, where, isolates, rules }) => ({
        policy: name,
        restricts: Object.entries(isolates).flatMap(([direction, isolated]) => (isolated ? [direction] : [])),
        rules: rules.length,
        where,
      }))
      if (options.json) return console.log(JSON.stringify(rows, null, 2))
      const cells = rows.map(row => [row.policy, row.restricts.join(', ') || 'nothing', `${row.rules}`, row.where])
      console.log(table(COLUMNS, cells, painter(process.stdout)).join('\n'))
    })
}

function explainCommand(): Command {
  const more = (word: string, list: string[] = []) => [...list, word]
  return new Command('explain')
    .description('Says whether a flow is allowed, and by which rule. Exits with 1 when it is not.')
    .requiredOption('--policy <PATH>', 'manifests, or a directory of them; may be given again', more)
    .requiredOption('--inventory <FILE>', 'pods and namespaces, as kubectl prints them (JSON or YAML)')
    .requiredOption('--from <POD|ADDRESS>', 'who opens the flow: namespace/name, or an address')
    .requiredOption('--to <POD|ADDRESS>', 'who is asked')
    .requiredOption('--port <N>', "the receiver's port", parsePort)
    .addOption(new Option('--protocol <NAME>', 'of the port').choices(['TCP', 'UDP', 'SCTP']).default('TCP'))
    .option('--method <M>', 'of an HTTP request')
    .option('--path <P>', 'of it; / when not given')
    .option('--host <H>', 'of it')
    .option(
      '--header <NAME:VALUE>',
      'of it; may be given again',
      (word: string, list: [string, string][]) => [...list, parseHeader(word)],
      [],
    )
    .option('--json', 'the answer as JSON')
    .addHelpText(
      'after',
      `
Examples:
  detour policy explain --policy policies/ --inventory cluster.json --from shop/web-0 --to shop/db-0 --port 5432
  detour policy explain --policy policies/ --inventory cluster.json --from 198.51.100.7 --to shop/web-0 --port 80 \\
    --method GET --path /admin`,
    )
    .action(explain)
}

function explain(options: ExplainOptions): void {
  const { method, path, host, header } = options
  const inventory = readInventory(options.inventory)
  const policies = new Policies(readPolicies(options.policy))
  const [from, to] = [partyOf(options.from, inventory, '--from'), partyOf(options.to, inventory, '--to')]
  const asksHttp = [method, path, host].some(part => part !== undefined) || header.length > 0
  const request = asksHttp
    ? { method: method ?? 'GET', path: normalPath(path ?? '/'), host: host?.toLowerCase() ?? '', headers: header }
    : undefined
  const answer = policies.decide({ from, to, protocol: options.protocol, port: options.port, request })
  if (options.json) console.log(JSON.stringify(plain(answer), null, 2))
  else print(answer, nameOf(from), nameOf(to), `${options.protocol} ${options.port}`)
  if (answer.verdict === 'deny') process.exitCode = 1
}

const WORDS = { allow: 'allowed', deny: 'denied', request: 'depends on the request' } as const
const COLOURS = { allow: 'green', deny: 'red', request: 'yellow' } as const

function print({ verdict, egress, ingress }: Answer, from: string, to: string, what: string): void {
  const paint = painter(process.stdout)
  console.log(`${from} → ${to} ${what}: ${paint(COLOURS[verdict], WORDS[verdict])}`)
  console.log(`  leaving  ${from}: ${WORDS[egress.verdict]} by ${printable(egress.reason)}`)
  console.log(`  arriving ${to}: ${WORDS[ingress.verdict]} by ${printable(ingress.reason)}`)
}

function plain({ verdict, egress, ingress }: Answer) {
  const half = ({ verdict, reason, http }: Answer['egress']) => ({
    verdict,
    reason,
    requests: http.map(one => one.text),
  })
  return { verdict, egress: half(egress), ingress: half(ingress) }
}

function partyOf(word: string, inventory: Inventory, option: string): Party {
  if (isIP(word) !== 0) return inventory.party(word)
  const name = word.includes('/') ? word : `default/${word}`
  const pod = inventory.pod(name)
  if (pod !== undefined) return { pod }
  throw new DetourError(
    'not-found',
    `${option} ${name}: no such pod in the inventory; give namespace/name, or an address`,
  )
}

const nameOf = (party: Party) => printable(party.pod === undefined ? party.address : podName(party.pod))

function parsePort(word: string): number {
  if (/^\d{1,5}$/.test(word) && Number(word) > 0 && Number(word) <= 65535) return Number(word)
  throw new InvalidArgumentError('Allowed: a port from 1 to 65535.')
}

function parseHeader(word: string): [string, string] {
  const at = word.indexOf(':')
  if (at > 0) return [word.slice(0, at).trim(), word.slice(at + 1).trim()]
  throw new InvalidArgumentError('Allowed: NAME:VALUE.')
}
