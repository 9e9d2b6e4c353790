// `detour node`: the daemon of a cluster node.

import { existsSync } from 'node:fs'
import { Command, Option } from 'commander'
import { configSchema, configuredEndpoints } from '../control/config.ts'
import { sampleYaml } from '../control/sample.ts'
import { readYaml } from '../control/yaml.ts'
import { DetourError } from '../errors.ts'
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
    .description("Runs the daemon of a cluster node, which steers its pods' packets through the tunnel.")
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
  sudo mkdir -p /etc/detour && detour node --print-config | sudo tee ${DEFAULT_FILE}
  detour node --check                               after an endpoint's address is in it
  sudo detour node --config ${DEFAULT_FILE}
  sudo detour show attachments --socket /run/detour/detour.sock
  sudo detour node --clean                          when it has been stopped for good`,
    )
    .action(run)
}

async function run({ config: file, check, printConfig, clean, partner = false }: Options): Promise<void> {
  if (printConfig) {
    process.stdout.write(sampleYaml(configSchema, 'Configuration of detour node: every key and its default.'))
    return
  }
  if (!clean && !existsSync(file))
    throw new DetourError('not-found', `${file} is not there; make it from what detour node --print-config prints`)
  if (check) {
    if (configuredEndpoints(readYaml(configSchema, file)).length === 0)
      throw new DetourError('bad-config', `${file}: no endpoint: name one as tunnel.remote, or several under endpoints`)
    process.stdout.write(`${file}: valid\n`)
    return
  }
  requireCapabilities(NODE_CAPABILITIES)
  keepOnly(NODE_CAPABILITIES)
  if (clean) {
    const { cleanNode } = await import('../node/clean.ts')
    const lines = await cleanNode(file)
    process.stdout.write(lines.length === 0 ? 'Nothing was left.\n' : `${lines.join('\n')}\n`)
    return
  }
  const { runDaemon } = await import('../node/daemon.ts')
  await runDaemon({ file, partner })
}
