// Classifiers on an interface without TCX: BPF filters of the clsact queueing discipline, by netlink (linux/pkt_cls.h, linux/pkt_sched.h).

import type { Hook } from './bpf.ts'
import { ERRNO, must } from './libc.ts'
import { attribute, cString, NLM_F_ACK, NLM_F_CREATE, NLM_F_EXCL, words } from './netlink.ts'
import { RTM, type Rtnetlink, rtnetlinkIn } from './rtnetlink.ts'

const CLSACT = 0xffff_fff1
const CLSACT_HANDLE = 0xffff_0000
const PARENT: Record<Hook, number> = { ingress: 0xffff_fff2, egress: 0xffff_fff3 }
const TCA = { KIND: 1, OPTIONS: 2 } as const
const TCA_BPF = { FD: 6, NAME: 7, FLAGS: 8 } as const
const ACT_DIRECT = 1

// Priority and handle of our filters; nobody else's are touched. All protocols (ETH_P_ALL in network byte order).
const HANDLE = 1
const INFO = (3559 << 16) | 0x0300

/** Makes the clsact queueing discipline of an interface; false when there was one. Throws DetourError. */
export function addClsact(namespace: string, name: string): boolean {
  const result = ask(namespace, name, (socket, index) =>
    socket.request(RTM.NEWQDISC, NLM_F_ACK | NLM_F_CREATE | NLM_F_EXCL, qdisc(index)),
  )
  if (result === -ERRNO.EEXIST) return false
  must(result, 'RTM_NEWQDISC clsact', name)
  return true
}

/** Removes it; gone already, interface and namespace included, is fine. */
export function deleteClsact(namespace: string, name: string): void {
  ask(namespace, name, (socket, index) => socket.request(RTM.DELQDISC, NLM_F_ACK, qdisc(index)))
}

/** Adds our filter, or takes the place of the one that is there without a packet in between; it runs a program (its file descriptor) and does what that returns. Throws DetourError. */
export function putFilter(namespace: string, name: string, hook: Hook, program: number): void {
  const options = [
    ...attribute(TCA_BPF.FD, words(program)),
    ...attribute(TCA_BPF.NAME, cString('detour')),
    ...attribute(TCA_BPF.FLAGS, words(ACT_DIRECT)),
  ]
  const result = ask(namespace, name, (socket, index) => {
    const payload = [...filter(index, hook), ...attribute(TCA.OPTIONS, options)]
    return socket.request(RTM.NEWTFILTER, NLM_F_ACK | NLM_F_CREATE, payload)
  })
  must(result, `RTM_NEWTFILTER ${hook}`, name)
}

/** Whether our filter is there. */
export function hasFilter(namespace: string, name: string, hook: Hook): boolean {
  return ask(namespace, name, (socket, index) => socket.request(RTM.GETTFILTER, 0, filter(index, hook))) === 0
}

/** Removes our filter; gone already, interface and namespace included, is fine. */
export function deleteFilter(namespace: string, name: string, hook: Hook): void {
  ask(namespace, name, (socket, index) => socket.request(RTM.DELTFILTER, NLM_F_ACK, filter(index, hook)))
}

/** What `question` returns, or -ENODEV where there is no such interface or namespace. */
function ask(namespace: string, name: string, question: (socket: Rtnetlink, index: number) => number): number {
  const socket = rtnetlinkIn(namespace)
  try {
    const link = socket?.link(name)
    return socket === undefined || link === undefined ? -ERRNO.ENODEV : question(socket, link.index)
  } finally {
    socket?.close()
  }
}

// struct tcmsg: family, interface, handle, parent, info; then the kind.
const qdisc = (index: number) => [
  ...words(0, index, CLSACT_HANDLE, CLSACT, 0),
  ...attribute(TCA.KIND, cString('clsact')),
]

const filter = (index: number, hook: Hook) => [
  ...words(0, index, HANDLE, PARENT[hook], INFO),
  ...attribute(TCA.KIND, cString('bpf')),
]
