// `detour node`: the daemon of a cluster node.

import { Command, Option } from 'commander'
import { configSchema } from '../control/config.ts'
import { sampleYaml } from '../control/sample.ts'
import { readYaml } from '../control/yaml.ts'
import { keepOnly, NODE_CAPABILITIES, requireCapabilities } from '../os/capabilities.ts'

/** Where the configuration is looked for. */
const DEFAULT_FILE = '/etc/detour/node.yaml'

interface Options {
  config: string
  check?: true
  printConfig?: true
  clean?: true
  partner?: boolean
}

export function nodeCommand(): Command {
  const capabilities = NODE_CAPABILITIES.map(({ name, purpose, optional }) => {
    return `  ${name.padEnd(16)}${purpose}${optional ? ' (optional)' : ''}`
  })
  return new Command('node')
    .description("the daemon of a cluster node: steers its pods' packets through the tunnel")
    .option('--config <FILE>', 'configuration, YAML', DEFAULT_FILE)
    .option('--check', 'only say whether the configuration is valid')
    .option('--print-config', 'print a configuration with every key, its default and what it means')
    .option(
      '--clean',
      'take away all that a daemon left behind, which must have stopped: every pod is as it was before',
    )
    .addOption(new Option('--partner', 'stand by for another daemon, which starts this one').hideHelp())
    .addHelpText(
      'after',
      `
Signals:
  SIGHUP          read the configuration again; what can change while packets flow does, nothing else is touched
  SIGTERM, SIGINT stop; attachments stay, under their fail mode, and the next daemon takes them over

Capabilities that it needs; all others are dropped:
${capabilities.join('\n')}

Examples:
  detour node --print-config > ${DEFAULT_FILE}
  detour node --check
  sudo detour node --config ${DEFAULT_FILE}
  detour show attachments --socket /run/detour/detour.sock`,
    )
    .action(run)
}

async function run({ config: file, check, printConfig, clean, partner = false }: Options): Promise<void> {
  if (printConfig) {
    process.stdout.write(sampleYaml(configSchema, 'Configuration of detour node: every key and its default.'))
    return
  }
  if (check) {
    readYaml(configSchema, file)
    process.stdout.write(`${file}: valid\n`)
    return
  }
  requireCapabilities(NODE_CAPABILITIES)
  keepOnly(NODE_CAPABILITIES)
  if (clean) {
    const { cleanNode } = await import('../node/clean.ts')
    for (const line of await cleanNode(file)) process.stdout.write(`${line}\n`)
    return
  }
  const { runDaemon } = await import('../node/daemon.ts')
  await runDaemon({ file, partner })
}
