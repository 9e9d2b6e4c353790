// Cases about health checks: AWS's ask a TCP port (80 as a rule) of each target, every ten seconds.

import { exec } from 'node:child_process'
import { get } from 'node:http'
import { connect } from 'node:net'
import { promisify } from 'node:util'
import { awsGuide, type Hands, type OtherCase, type Target } from '../case.ts'

const AWS_HEALTH = awsGuide('health checks')

/** Checks in a row that a target may still pass after its data path has died. */
const CHECKS = 10

const withoutPort = ({ healthPort }: Target) => (healthPort === undefined ? '--health PORT asks for it' : undefined)

/** True when the port takes a connection within the time. */
function accepts({ host, target, timeoutMs }: Hands): Promise<boolean> {
  return new Promise(resolve => {
    const socket = connect({ host, port: target.healthPort ?? 0 })
    const end = (accepted: boolean) => {
      socket.destroy()
      resolve(accepted)
    }
    socket.setTimeout(timeoutMs, () => end(false))
    socket.once('connect', () => end(true)).once('error', () => end(false))
  })
}

/** The status of GET /; undefined when there is none in time, or what answers is not HTTP. */
function status({ host, target, timeoutMs }: Hands): Promise<number | undefined> {
  return new Promise(resolve => {
    const request = get({ host, port: target.healthPort, path: '/', agent: false, timeout: timeoutMs }, response => {
      resolve(response.statusCode)
      response.destroy()
    })
    request.on('timeout', () => request.destroy())
    request.on('error', () => resolve(undefined))
  })
}

export const HEALTH_CASES: readonly OtherCase[] = [
  {
    name: 'health-answers',
    section: AWS_HEALTH,
    sent: 'a TCP connection to the health port',
    expected: 'it is accepted while the endpoint serves packets',
    without: withoutPort,
    run: async hands => ((await accepts(hands)) ? undefined : 'it was refused, or nothing came'),
  },
  {
    name: 'health-dies',
    section: AWS_HEALTH,
    sent: `the kill command, then a health check (HTTP if it speaks that, else TCP) up to ${CHECKS} times`,
    expected: 'the health check fails once the data path does not answer any more',
    without: target =>
      withoutPort(target) ??
      (target.killCommand === undefined
        ? 'a page that is well for ever is told only by ending the data path: --kill-command asks for it'
        : undefined),
    run: dies,
  },
]

async function dies(hands: Hands): Promise<string | undefined> {
  const { timeoutMs, target } = hands
  const speaksHttp = (await status(hands)) !== undefined
  await promisify(exec)(target.killCommand ?? '').catch(() => {})
  let dead = false
  for (let i = 0; i < CHECKS; i++) {
    dead ||= !(await hands.alive())
    const answer = speaksHttp ? await status(hands) : undefined
    const well = speaksHttp ? answer !== undefined && answer >= 200 && answer < 400 : await accepts(hands)
    if (dead && !well) return undefined
    await hands.sleep(timeoutMs)
  }
  if (!dead) return 'the kill command did not end the data path: packets are still answered'
  return `the data path is dead, and ${CHECKS} health checks still found it well`
}
