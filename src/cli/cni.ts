// detour cni: what a container runtime calls, explained to people, and the installer.

import { Command } from 'commander'

/** The subcommand `cni`. */
export function cniCommand(): Command {
  return new Command('cni').description('The chained CNI plugin, and its installer.')
}

export async function runCni(argv: string[]): Promise<void> {
  await cniCommand().parseAsync(argv, { from: 'user' })
}
