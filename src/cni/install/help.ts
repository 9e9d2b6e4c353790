// What `detour cni install --help` prints.

/** Usage of the three commands, with examples. */
export const HELP = `Usage: detour cni install|uninstall|repair [options]

install    puts the plugin's executable where the container runtime looks for it, and its entry behind the primary plugin's
           in the first usable network configuration. Doing it again changes only what differs.
uninstall  takes the entry out of every file, and removes the executable.
repair     keeps it installed: watches the directory and makes good what somebody undoes, until it is ended by a signal.

Options of all:
  --bin-dir DIR                where executables of plugins are (default: /opt/cni/bin)
  --conf-dir DIR               where network configurations are (default: /etc/cni/net.d; with --multus: /etc/cni/multus/net.d)
  --json                       a line of JSON for each thing that is done or happens
  -h, --help                   print this help

Options of install and repair:
  --source FILE                the executable (default: the one that runs, else what "npm run build:cni" made)
  --socket PATH                the daemon's control socket
  --inspect WORD               pods that say nothing: default (the daemon decides), always, never
  --exclude-namespaces A,B     pods of these namespaces are never inspected
  --fail-mode WORD             when the daemon or the endpoint is gone: open or closed

Options of install:
  --wait                       wait until there is a network configuration: the primary plugin may come later
  --multus                     for Multus (OpenShift): an unchained network "detour", and its manifest on standard output
  --namespace NAME             the namespace in that manifest (default: default)
  --dry-run                    say what would be done (uninstall too)

Options of uninstall:
  --multus                     remove what install --multus wrote
  --keep-executable            for runtimes that call plugins of pods that still run (CRI-O, podman)

Options of repair:
  --status-file FILE           {"ready": …, "reason": …}, replaced whenever it changes

A configuration of a single plugin (NAME.conf) is left alone: a list NAME-detour.conflist is written, which sorts before it.
Behind Multus, the entry goes into the configuration that Multus delegates to.

Examples:
  sudo detour cni install
  sudo detour cni install --wait --exclude-namespaces kube-system,monitoring --fail-mode closed
  sudo detour cni install --dry-run --json
  sudo detour cni install --multus --namespace shop --bin-dir /var/lib/cni/bin | oc apply -f -
  sudo detour cni repair --json --status-file /run/detour/cni.json
  sudo detour cni uninstall
`
