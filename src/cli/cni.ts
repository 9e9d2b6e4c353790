// detour cni, and the arguments of the self-contained plugin: the plugin explained to people, and its installer.

import { Command } from 'commander'
import { runCni } from './cni-words.ts'

/** The subcommand `cni`; it leaves its arguments to `runCni`, as the executable does, which has no Commander inside. */
export function cniCommand(): Command {
  return new Command('cni')
    .usage('[install|uninstall|repair]')
    .helpOption(false)
    .allowUnknownOption()
    .argument('[words...]')
    .action(async (_words, _options, command: Command) => {
      process.exitCode = await runCni(command.args)
    })
}
