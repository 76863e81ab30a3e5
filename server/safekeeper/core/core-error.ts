/**
 * Something that the rules of consensus exclude has happened: a bug, or another node that does not keep to them. There is no honest
 * way on, so the process ends. What is merely unusual (late, doubled, refused messages) is never an error here.
 */
export class CoreError extends Error {
  override readonly name = 'CoreError'
}
