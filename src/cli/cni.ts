// detour cni: what a container runtime calls, explained to people, and the installer.

import { Command } from 'commander'

/** The subcommand `cni`. */
export function cniCommand(): Command {
  return new Command('cni').description('The chained CNI plugin, and its installer.')
}
