"""The tables of Sec. 4.1, from records whose numbers tell rows and columns apart."""

from support.records import arm_rows, sweep_rows

from batchnorm.paper.show.mnist_tables import best_table, steps_table


def test_steps_table():
    head, plain, normalized = steps_table(arm_rows())
    assert head == ["", "steps to 90%", "steps to 95%", "steps to 97%", "best", "last"]
    # 0.93 - 0.3 * 2^(-s/200) >= 0.9 from s = 664 on, 0.98 - … >= 0.9, 0.95, 0.97 from 381, 664, 981.
    assert plain == ["without BN", "700", "not reached", "not reached", "92.97%", "92.97%"]
    assert normalized[:4] == ["with BN", "400", "700", "1,000"]


def test_best_table():
    head, plain, normalized = best_table(sweep_rows())
    assert head == ["", "learning rate", "initial std", "mean", "worst seed", "best seed"]
    # The accuracy is lr * std, so the best setting is the largest of both: 1 * 0.5.
    assert plain == ["without BN", "1", "0.5", "50.00%", "50.00%", "50.00%"]
    assert normalized == ["with BN", *plain[1:]]
