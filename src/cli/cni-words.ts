// What follows `detour cni` or the name of the plugin's executable on a command line: the installer's verbs, or a question.

import { INSTALLER_VERBS, runInstaller } from '../cni/install/command.ts'
import { packageVersion } from '../control/package.ts'
import { DetourError } from '../errors.ts'

const HELP = `Usage: detour cni                             the chained CNI plugin; a container runtime calls it
       detour cni install|uninstall|repair    puts it behind the primary plugin and keeps it there (install --help says more)

The plugin speaks CNI 0.3.0, 0.3.1, 0.4.0, 1.0.0 and 1.1.0: ADD, DEL, CHECK, STATUS, GC and VERSION. It asks the daemon, detour
node, to do the work. While that is not running, ADD fails with code 11 (try again later) and DEL succeeds.

An entry of a conflist, behind the plugin that makes the interface:
  {
    "type": "detour-cni",                              the executable's name
    "capabilities": {"io.kubernetes.cri.pod-annotations": true},
    "socket": "/run/detour/detour.sock",               the daemon's control socket
    "inspect": "default",                              pods that say nothing: default (the daemon decides), always, never
    "excludeNamespaces": ["kube-system"],              pods of these are left alone, even while there is no daemon
    "failMode": "closed",                              when daemon or endpoint are gone: open, closed; else the daemon's
    "logFile": "/var/log/detour-cni.log"               a line of JSON for each call
  }

A pod's say, by annotation or in CNI_ARGS:
  detour.dev/inspect: "true", "false"                  DETOUR_INSPECT=true
  detour.dev/fail-mode: "open", "closed"               DETOUR_FAIL_MODE=closed

Examples:
  sudo detour cni install --fail-mode closed
  CNI_COMMAND=VERSION detour cni </dev/null
  echo '{"cniVersion": "1.1.0", "name": "any", "type": "detour-cni"}' | sudo CNI_COMMAND=STATUS detour cni && echo ready
  sudo detour cni uninstall
`

/** Does what the words say, and resolves to the exit status. Throws DetourError. */
export async function runCni(words: string[]): Promise<number> {
  const [first] = words
  if (INSTALLER_VERBS.some(verb => verb === first)) return runInstaller(words, process.stdout)
  if (first === '--version' || first === '-V') {
    process.stdout.write(`${packageVersion()}\n`)
    return 0
  }
  if (first !== undefined && first !== '--help' && first !== '-h') {
    throw new DetourError('usage', `cni: '${first}' is none of ${INSTALLER_VERBS.join(', ')} (--help says more)`)
  }
  process.stdout.write(HELP)
  return first === undefined ? 2 : 0
}
