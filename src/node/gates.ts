// What the gates at the pods' interfaces did, which is the kernel's work, as counters of a stage each.

import type { WorkerCounters } from '../control/source.ts'
import { DROP } from '../drop.ts'
import { StageCounters } from '../memory/counters.ts'
import type { FailCounters } from '../os/heartbeat.ts'

/** The worker that people see beside these stages. */
export const KERNEL = 'kernel'

/** The counters of all gates; bytes are not known. */
export function gateCounters(attachments: { id: string; failCounters(): FailCounters }[]): WorkerCounters {
  const stages = attachments.map(attachment => {
    const { redirected, passed, dropped, spoofedMac, spoofedAddress, link, inspected } = attachment.failCounters()
    const stage = new StageCounters(`gate ${attachment.id}`)
    const on = redirected + passed + link + inspected
    stage.received(on + dropped + spoofedMac + spoofedAddress, 0)
    stage.sent(on, 0)
    stage.passed(passed + link + inspected, passed, inspected)
    stage.dropped(DROP.NO_WORKER, dropped)
    stage.dropped(DROP.SPOOFED_MAC, spoofedMac)
    stage.dropped(DROP.SPOOFED_ADDRESS, spoofedAddress)
    return stage
  })
  return { worker: KERNEL, stages }
}
